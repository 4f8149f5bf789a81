"use strict";

// Requests status.json every few seconds and shows it. Everything from the network becomes text, never
// markup. Existing elements are kept and get new numbers, so that a selection and the focus survive a refresh.

const INTERVAL = 5000; // the notifier's sampling interval
const TIMEOUT = 10000; // of a request
const SPAN = 900; // the seconds that the plots show
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const digits = new Intl.NumberFormat("en");
const decimals = [0, 1, 2].map((most) => new Intl.NumberFormat("en", { maximumFractionDigits: most }));

const count = (number) => (number == null ? "–" : digits.format(number));
const short = (number) => decimals[number >= 100 ? 0 : number >= 10 ? 1 : 2].format(number);
const rate = (number) => (number == null ? "–" : `${short(number)}/s`);
const sum = (list, of) => list.reduce((all, one) => all + (of(one) ?? 0), 0);
const known = (list, of) => (list.some((one) => of(one) != null) ? sum(list, of) : null);

/** A duration in its largest unit or two. */
function span(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const whole = Math.floor(seconds);
  const first = units.findIndex(([size]) => whole >= size);
  if (first < 0) return "0 s";
  const [size, name] = units[first];
  const rest = units[first + 1];
  const more = rest ? Math.floor((whole % size) / rest[0]) : 0;
  return `${Math.floor(whole / size)} ${name}${more ? ` ${more} ${rest[1]}` : ""}`;
}

/** The bound of a quantile as text. */
function bound(quantile) {
  if (!quantile) return "–";
  const { seconds, is_more } = quantile;
  const text = seconds < 1 ? `${short(seconds * 1000)} ms` : span(seconds);
  return `${is_more ? ">" : "≤"} ${text}`;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
  return node;
}

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Makes the children of `parent` one for each item, in their order. Keeps children with the same key. */
function keep(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    let child = old.get(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    old.delete(key);
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
    update(child, item);
  });
  for (const child of old.values()) child.remove();
}

/** The text as nodes; parts in backticks become code. */
function textNodes(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

const MARKS = { well: "✓", attention: "!", trouble: "✕", silent: "?" };

function showVerdict(state, headline, advice) {
  const shown = JSON.stringify([state, headline, advice]);
  // Unchanged text stays, so that a selection in it survives.
  if ($("verdict").dataset.shown === shown) return;
  $("verdict").dataset.shown = shown;
  $("verdict").hidden = false;
  // A screen reader reads this aloud, so a change of numbers alone doesn't count.
  if (headline.replace(/\d+/g, "") !== $("announced").textContent.replace(/\d+/g, "")) {
    say($("announced"), headline);
  }
  $("verdict").className = `verdict ${state === "silent" ? "trouble" : state}`;
  say($("mark"), MARKS[state]);
  say($("headline"), headline);
  $("advice").replaceChildren(
    ...advice.map(({ what, remedy }) =>
      make("li", {}, ...(what ? [make("strong", {}, what)] : []), ...textNodes(remedy)),
    ),
  );
  document.title = `${MARKS[state]} ${headline} – webhook-notifier`;
  document.body.classList.toggle("silent", state === "silent");
}

/** The headline is the worst problem, if there is one; below it are its remedy and all other advice. */
function verdict({ state, advice }) {
  if (state === "well") return showVerdict(state, "All is well.", advice);
  const [{ what, remedy }, ...rest] = advice;
  showVerdict(state, what, [{ what: "", remedy }, ...rest]);
}

function server({ answers, lasted_seconds }, problem) {
  if (answers == null) return ["not asked yet", "", ""];
  const lasted = `for ${span(lasted_seconds)}`;
  if (answers) return ["✓ answers", lasted, "is-well"];
  return [problem ? "✕ answers with an error" : "✕ does not answer", lasted, "is-trouble"];
}

/** The largest counts, with their names. */
function most(counts, names = 2) {
  const all = Object.entries(counts).sort(([, one], [, other]) => other - one);
  return all.slice(0, names).map(([name, number]) => `${name} ${count(number)}`).join(", ");
}

/** The sums of all lanes' counts, by name. */
function together(lanes, which) {
  const all = {};
  for (const lane of lanes) {
    for (const [name, number] of Object.entries(lane[which])) all[name] = (all[name] ?? 0) + number;
  }
  return all;
}

const total = (counts) => sum(Object.values(counts), (number) => number);

/** The deliveries that were held back. Split and interrupted ones only continue in another lane. */
function heldBack(lanes) {
  const { split, interrupted, ...held } = together(lanes, "held");
  return held;
}

function figures(status) {
  const { broker, database, database_problem: problem, lanes, waiting, receivers, backlogs } = status;
  const { orphaned, dropped, refusals, refusing, depths_age_seconds: age } = status;
  const rates = (which, of = lanes) => rate(known(of, (lane) => lane.rates?.[which]));
  const counted = (which, of = lanes) => `${count(sum(of, (lane) => lane[which]))} since the start`;
  const events = lanes.filter((lane) => lane.kind === "events");
  const stored = known(lanes.filter((lane) => lane.kind === "backlogs"), (lane) => lane.ready);
  const dead = known(lanes, (lane) => lane.dead);
  const late = age != null && !broker.answers ? `as of ${span(age)} ago` : "";
  const { ailing, broken, known: recent } = receivers;
  const held = heldBack(lanes);
  const refused = sum(refusing, (one) => one.messages);
  const attention = (number) => (number > 0 ? "is-attention" : "");
  const inUse = known(lanes, (lane) => lane.in_use);
  const capacity = known(lanes, (lane) => lane.capacity);
  return [
    ["RabbitMQ", ...server(broker)],
    ["PostgreSQL", ...server(database, problem), "webhook_database_up"],
    ["Events received", rates("received", events), counted("received", events)],
    ["Delivered", rates("delivered"), counted("delivered"), "", "webhook_request_success_total"],
    ["Failed attempts", rates("failed"), counted("failed"), "", "webhook_request_failure_total"],
    ["Requests in flight", count(sum(lanes, (lane) => lane.in_flight)), capacity == null ? "" : `${count(inUse)} of ${count(capacity)} in use`, "", "webhook_requests_in_flight"],
    ["Ailing receivers", count(ailing), `${broken ? `${count(broken)} down, ` : ""}of ${count(recent)} recent`, attention(broken), "webhook_receivers_ailing"],
    ["Waiting for a retry", count(known(waiting, (one) => one.messages)), late, "", 'webhook_queue_messages{queue=~"webhooks.wait.*"}'],
    ["In backlogs", count(stored), late || (backlogs.filled ? `of ${count(backlogs.webhooks)} receivers` : ""), "", "webhook_backlog_deliveries"],
    ["Held back", count(total(held)), total(held) ? most(held) : "since the start", "", "webhook_deliveries_held_total"],
    ["Dropped", count(total(dropped)), total(dropped) ? most(dropped) : "since the start", "", "webhook_deliveries_dropped_total"],
    ["Dead letters", count(dead), late || most(together(lanes, "died")), attention(dead), 'webhook_queue_messages{queue=~".*.dead"}'],
    ["Orphaned", count(orphaned), late, attention(orphaned), 'webhook_queue_messages{queue="webhooks.orphaned"}'],
    ["Refused by RabbitMQ", count(refusals), refusing.length ? `${count(refused)} waiting` : "since the start", refusing.length ? "is-trouble" : "", "webhook_refusals_total"],
  ];
}

function showFigures(status) {
  keep(
    $("figures"),
    figures(status),
    ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("span"), make("small"))),
    (node, [, value, more, tone, metric]) => {
      const [main, small] = node.lastChild.children;
      say(main, value).className = tone || (/^(–|0|0\/s)$/.test(value) ? "nothing" : "");
      say(small, more);
      if (metric) main.title = metric;
    },
  );
}

const STATES = {
  consuming: ["✓ consuming", "is-well"],
  starting: ["… starting", "is-attention"],
  no_broker: ["✕ no RabbitMQ", "is-trouble"],
  no_confirms: ["✕ no confirms", "is-trouble"],
  no_database: ["✕ no PostgreSQL", "is-trouble"],
};

function cells(row, labels, numbers) {
  const of = (label) => make("td", { role: "cell", "data-label": label });
  row.append(...labels.map(of));
  for (const cell of [...row.children].slice(numbers)) cell.classList.add("number");
  return row;
}

/** Sets a cell's text, the smaller text below it, and the name of its metric. */
function fill(cell, text, more = "", metric = "") {
  if (!cell.firstChild) cell.append(make("span"), make("small"));
  say(cell.firstChild, text);
  say(cell.lastChild, more);
  cell.classList.toggle("nothing", /^(–|0|0\/s)$/.test(text));
  if (metric) cell.firstChild.title = cell.lastChild.title = metric;
  return cell;
}

function head(...nodes) {
  const row = make("tr", { role: "row" });
  row.append(make("th", { role: "rowheader", scope: "row" }, ...nodes));
  return row;
}

function laneRow({ queue, kind }) {
  const row = head(make("bdi", {}, queue));
  row.className = kind === "events" ? "" : "retry";
  cells(row, ["State", "Ready", "In flight", "Messages", "Delivered", "Failed", "Lag p50", "Lag p99"], 2);
  row.children[1].classList.add("state");
  return row;
}

const labelled = (queue) => `{queue=${JSON.stringify(queue)}}`;

function fillState(cell, lane, of = "", where = "") {
  const [word, tone] = STATES[lane.state] ?? [lane.state, ""];
  const wrong = lane.state === "consuming" ? "" : `${where}for ${span(lane.lasted_seconds)}`;
  fill(cell, word, wrong, `webhook_broker_connected${of}`);
  cell.firstChild.className = tone;
}

function updateLane(row, lane) {
  const of = labelled(lane.queue);
  const [, state, ready, inFlight, received, delivered, failed, p50, p99] = row.children;
  fillState(state, lane, of);
  fill(ready, count(lane.ready), "", `webhook_queue_messages${of}`);
  fill(inFlight, count(lane.in_flight), "", `webhook_requests_in_flight${of}`);
  fill(received, rate(lane.rates?.received), count(lane.received), `webhook_events_received_total${of}`);
  fill(delivered, rate(lane.rates?.delivered), count(lane.delivered), `webhook_request_success_total${of}`);
  fill(failed, rate(lane.rates?.failed), count(lane.failed), `webhook_request_failure_total${of}`);
  fill(p50, bound(lane.lag_p50), "", `webhook_delivery_lag_seconds${of}`);
  fill(p99, bound(lane.lag_p99), "", `webhook_delivery_lag_seconds${of}`);
}

/** The queues, each with its lanes. */
function queuesOf(lanes) {
  return [...new Set(lanes.map((lane) => lane.origin))].map((origin) => ({
    origin,
    lanes: lanes.filter((lane) => lane.origin === origin),
  }));
}

function queueRow({ origin }) {
  const row = head(make("bdi", {}, origin));
  const labels = ["State", "Waiting", "In flight", "Received", "Delivered", "Failed", "Held back", "Lag p50", "Lag p99", "Dead letters", "Last 15 minutes"];
  cells(row, labels, 2);
  row.children[1].classList.add("state");
  const sparks = make("div", { class: "spark" }, graph("delivered"), graph("failed"));
  row.lastChild.className = "plotted";
  row.lastChild.append(sparks);
  return row;
}

/** Whether the number of waiting deliveries grows; otherwise when none will be left. */
function trend(waiting, growth, emptyIn) {
  if (!waiting || growth == null) return "";
  if (Math.abs(growth) < 0.05) return "steady";
  if (growth > 0) return `▲ ${rate(growth)}`;
  return emptyIn == null ? `▼ ${rate(-growth)}` : `▼ empty in ${span(Math.max(1, emptyIn))}`;
}

/** The seconds until all of these lanes are empty; null if one of them doesn't shrink. */
function allEmptyIn(kinds) {
  return kinds.some((kind) => kind.empty_in_seconds == null) ? null : Math.max(...kinds.map((kind) => kind.empty_in_seconds));
}

const KINDS = { events: "new", retries: "to retry", backlogs: "in backlogs" };

function updateQueue(row, { origin, lanes, ages }) {
  const of = labelled(origin);
  const [, state, waiting, inFlight, received, delivered, failed, held, p50, p99, dead, plots] = row.children;
  const rates = (which) => rate(known(lanes, (lane) => lane.rates?.[which]));
  const counted = (which) => count(sum(lanes, (lane) => lane[which]));
  const metric = (name) => `${name}{queue=~${JSON.stringify(`${origin}([.](retry|backlog))?`)}}`;
  // The queue has the state of its worst lane: the one that hasn't consumed for longest.
  const idle = lanes.filter((lane) => lane.state !== "consuming");
  const worst = idle.sort((one, other) => other.lasted_seconds - one.lasted_seconds)[0] ?? lanes[0];
  const where = idle.length === 0 || idle.length === lanes.length ? "" : `${KINDS[worst.kind]}, `;
  fillState(state, worst, "", where);
  const ready = known(lanes, (lane) => lane.ready);
  const kinds = lanes.filter((lane) => lane.ready > 0);
  const parts = kinds.map((lane) => `${kinds.length > 1 ? `${count(lane.ready)} ` : ""}${KINDS[lane.kind]}`);
  const moves = trend(ready, known(lanes, (lane) => lane.growth_per_second), allEmptyIn(kinds));
  fill(waiting, count(ready), [parts.join(" · "), moves].filter((part) => part).join("\n"), metric("webhook_queue_messages"));
  const [events] = lanes;
  const inUse = events.capacity == null ? "" : `${count(events.in_use)} of ${count(events.capacity)}`;
  fill(inFlight, count(sum(lanes, (lane) => lane.in_flight)), inUse, metric("webhook_requests_in_flight"));
  const { split } = together(lanes, "held");
  fill(received, rate(events.rates?.received), count(events.received) + (split ? `\n${count(split)} split off` : ""), `webhook_events_received_total${of}`);
  fill(delivered, rates("delivered"), counted("delivered"), metric("webhook_request_success_total"));
  fill(failed, rates("failed"), counted("failed"), metric("webhook_request_failure_total"));
  fill(held, count(total(heldBack(lanes))), most(heldBack(lanes), 1), metric("webhook_deliveries_held_total"));
  fill(p50, bound(events.queue_lag_p50));
  fill(p99, bound(events.queue_lag_p99));
  fill(dead, count(events.dead), "", `webhook_queue_messages${labelled(`${origin}.dead`)}`);
  if (events.dead > 0) dead.firstChild.className = "is-attention";
  const [spark] = plots.children;
  for (const [at, which] of ["delivered", "failed"].entries()) {
    draw(spark.children[at], plotOf(which, ages, lanes), origin, which);
  }
}

/** The smallest round number that isn't below this one. */
function ceiling(number) {
  if (!(number > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(number));
  const round = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power);
  // With a tolerance, since 3 * 0.1 isn't exactly 0.3.
  return round.find((step) => step >= number * 0.999999) ?? number;
}

/** What the lanes counted in each step: the ages of its begin and end, the count, and the rate per second. */
function steps(ages, lanes, which) {
  return ages.slice(1).map((end, at) => {
    const begin = ages[at];
    const all = sum(lanes, (lane) => lane.trend[which][at]);
    return { begin, end, all, rate: begin > end ? all / (begin - end) : 0 };
  });
}

function graph(which) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SPAN} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("class", which);
  svg.append(document.createElementNS(SVG, "path"));
  return svg;
}

const x = (age) => (SPAN - Math.min(age, SPAN)).toFixed(1);
// The top has a margin, so that the line isn't cut. Every value above zero can be seen.
const y = (value, top) => (value > 0 ? Math.min(94, 100 - (value / top) * 96) : 100).toFixed(1);

function plotOf(which, ages, lanes) {
  const all = steps(ages, lanes, which);
  const peak = Math.max(0, ...all.map((step) => step.rate));
  const now = rate(known(lanes, (lane) => lane.rates?.[which]));
  return { all, peak, total: sum(all, (step) => step.all), top: ceiling(peak), now };
}

function draw(svg, { all, peak, total, top, now }, title, which) {
  const line = all.map(({ begin, end, rate }) => `L${x(begin)} ${y(rate, top)}H${x(end)}`).join("");
  const path = all.length && total ? `M${x(all[0].begin)} 100${line}L${x(all.at(-1).end)} 100Z` : "";
  svg.firstChild.setAttribute("d", path);
  const range = `at most ${rate(peak)}, ${count(total)} in all`;
  svg.setAttribute("aria-label", `${title}, ${which} per second over the last 15 minutes: now ${now}, ${range}`);
}

/** How many deliveries waited in these backlogs together, by age, oldest first. */
function depths(backlogs) {
  const counts = backlogs.flatMap(({ trend }, of) => trend.ages_seconds.map((age, at) => ({ age, of, waiting: trend.waiting[at] })));
  const latest = backlogs.map(() => 0);
  counts.sort((one, other) => other.age - one.age);
  return counts.map(({ age, of, waiting }) => {
    latest[of] = waiting;
    return { age, all: sum(latest, (each) => each) };
  });
}

function drawDepths(svg, counts) {
  const top = Math.max(1, ...counts.map(({ all }) => all));
  const line = counts.map(({ age, all }) => `L${x(age)} ${y(all, top)}`).join("");
  svg.firstChild.setAttribute("d", counts.length > 1 ? `M${x(counts[0].age)} 100${line}L${x(counts.at(-1).age)} 100Z` : "");
  svg.setAttribute("aria-label", `waiting over the last 15 minutes: at most ${count(top)}, now ${count(counts.at(-1).all)}`);
}

function strip(which, name) {
  const caption = make("figcaption", {}, make("i", { "aria-hidden": "true" }), name, make("b"), make("small"));
  const plot = make("div", { class: "plot" }, graph(which), make("span", { "aria-hidden": "true" }));
  const axis = make("div", { class: "axis", "aria-hidden": "true" }, make("span", {}, "15 min ago"), make("span", {}, "now"));
  return make("figure", { class: `strip ${which}` }, caption, plot, axis);
}

function showTrends({ sample_ages_seconds: ages, lanes }) {
  keep(
    $("trends"),
    ["all queues"],
    (title) => title,
    () => make("div", { class: "trend" }, strip("delivered", "Delivered"), strip("failed", "Failed")),
    (node, title) => {
      for (const [at, which] of ["delivered", "failed"].entries()) {
        const figure = node.children[at];
        const plot = plotOf(which, ages, lanes);
        draw(figure.querySelector("svg"), plot, title, which);
        say(figure.querySelector("b"), plot.now);
        say(figure.querySelector("small"), `${count(plot.total)} in 15 min`);
        say(figure.querySelector(".plot span"), plot.total ? short(plot.top) : "none");
      }
    },
  );
}

function showWaiting({ waiting }) {
  keep(
    $("waiting"),
    waiting,
    (one) => one.queue,
    ({ delay }) => make("div", {}, make("dt", {}, delay), make("dd")),
    (node, { queue, messages }) => {
      say(node.lastChild, count(messages)).title = `webhook_queue_messages{queue="${queue}"}`;
      node.className = messages ? "" : "nothing";
    },
  );
}

const CONDITIONS = {
  open: ["✕ down", "is-trouble", "breaker open"],
  half_open: ["✕ down", "is-trouble", "being probed"],
  stay_away: ["… asked us to wait", "is-attention"],
  failing: ["! failing", "is-attention"],
  slow: ["! slow", "is-attention"],
  unproven: ["… not answered yet", ""],
  well: ["✓ well", "is-well"],
};

/** The state of a receiver of which only the cause of its backlog is known. */
const STATES_BY_CAUSE = {
  paused: ["‖ paused", ""],
  breaker: ["✕ down", "is-trouble", "breaker open"],
  retry_after: ["… asked us to wait", "is-attention"],
  slow: ["! slow", "is-attention"],
  rate: ["limited", ""],
  max_in_flight: ["limited", ""],
  elsewhere: ["limited", ""],
  behind: ["✓ catching up", "is-well"],
};

const REASONS = {
  status_1xx: "status 1xx",
  status_3xx: "a redirect",
  status_4xx: "status 4xx",
  status_5xx: "status 5xx",
  timeout: "timeout",
  refused: "connection refused",
  reset: "connection lost",
  dns: "host name not found",
  tls: "TLS error",
  protocol: "not HTTP",
  proxy: "egress proxy error",
  io: "network error",
};

function why({ failures, reason, status }) {
  if (!failures) return "a request took over a second";
  const words = status != null ? `status ${status}` : REASONS[reason] ?? reason ?? "unknown";
  return failures === 1 ? `last attempt failed: ${words}` : `${count(failures)} failures in a row, last: ${words}`;
}

function next({ is_probed, next_in_seconds }) {
  if (is_probed) return "in progress";
  if (next_in_seconds == null) return "with its next delivery";
  return next_in_seconds < 1 ? "due" : `in ${span(next_in_seconds)}`;
}

const CAUSES = {
  share: "it uses its share of the capacity",
  group: "its account or host uses its share of the capacity",
  slow: "it is slow, and the share of slow receivers is used up",
  unproven: "it has not answered yet",
  ramp: "it had too many requests, and gets fewer now",
  full: "all of the capacity is in use",
  breaker: "its circuit breaker is open",
  retry_after: "it asked us to wait (Retry-After)",
  max_in_flight: "its webhook's max_in_flight",
  rate: "its webhook's rate_per_second",
  elsewhere: "another instance keeps its webhook's limits",
  behind: "being sent, in order",
  paused: "its webhook is paused",
};

const isAiling = ({ condition }) => condition != null && condition !== "well" && condition !== "unproven";

/** The receivers, each with its condition and its backlogs. */
function receiversOf({ receivers, backlogs }) {
  const all = new Map();
  const of = (one) => {
    if (!all.has(one.webhook)) all.set(one.webhook, { ...one, condition: null, backlogs: [] });
    return all.get(one.webhook);
  };
  for (const one of receivers.listed) Object.assign(of(one), one);
  // If all ailing receivers are listed, one that isn't listed is well.
  const areAll = receivers.listed.length >= receivers.matching;
  for (const one of backlogs.listed) {
    const receiver = of(one);
    const isWell = receiver.condition ? !isAiling(receiver) : areAll;
    // These causes no longer hold once the receiver is well.
    const isOver = isWell && ["breaker", "retry_after", "slow", "ramp"].includes(one.cause);
    receiver.backlogs.push(isOver ? { ...one, cause: "behind", next_in_seconds: null } : one);
  }
  return [...all.values()];
}

function receiverRow({ webhook }) {
  const copy = make("button", { type: "button" }, "copy id");
  copy.addEventListener("click", () => copyText(webhook, copy));
  const id = make("span", { class: "id" }, make("code", {}, webhook), copy);
  const row = head(make("bdi", { class: "account" }), make("bdi", { class: "place" }), id);
  cells(row, ["State", "Why", "For", "Next attempt", "Backlog"], Infinity);
  row.children[2].classList.add("wide");
  row.children[1].classList.add("state");
  row.children[4].classList.add("next");
  row.children[5].className = "backlog";
  return row;
}

function updateReceiver(row, one) {
  const [name, state, reason, lasted, attempt, backlog] = row.children;
  const [account, place, id] = name.children;
  const { backlogs, condition } = one;
  // The largest backlog.
  const [first] = [...backlogs].sort((one, other) => other.waiting - one.waiting);
  say(account, one.account ?? "");
  account.hidden = one.account == null;
  say(place, one.place ?? "host and path not known");
  for (const node of [account, place]) node.title = node.textContent;
  id.lastChild.setAttribute("aria-label", `copy the id of ${one.account ?? ""} ${one.place ?? one.webhook}`);
  const [word, tone, more] = (condition ? CONDITIONS[condition] : STATES_BY_CAUSE[first?.cause]) ?? ["waits", ""];
  fill(state, word, more).firstChild.className = tone;
  const ails = isAiling(one);
  const causes = [...new Set(backlogs.map(({ cause }) => cause))];
  // The causes of its backlogs that its condition doesn't already say.
  const waits = causes.filter((cause) => !ails || !["breaker", "retry_after", "slow", "behind", "ramp"].includes(cause));
  const reasons = [ails ? why(one) : "", ...waits.map((cause) => CAUSES[cause] ?? cause)];
  fill(reason, reasons.filter((part) => part).join("; ") || "–");
  const longest = Math.max(one.lasted_seconds ?? 0, ...backlogs.map((it) => it.lasted_seconds));
  fill(lasted, ails || first ? span(longest) : "–");
  const due = backlogs.find((it) => it.next_in_seconds != null);
  fill(attempt, ails ? next(one) : due ? next(due) : "–");
  updateBacklog(backlog, backlogs);
}

/** How many deliveries wait, their trend, and when none will be left. */
function updateBacklog(cell, backlogs) {
  if (!cell.firstChild) {
    const spark = make("span", { class: "spark" }, graph("waiting"));
    cell.append(make("div", {}, make("span"), spark, make("small"), make("small")));
  }
  const [number, spark, pace, queues] = cell.firstChild.children;
  const waiting = sum(backlogs, (one) => one.waiting);
  const is = backlogs.length > 0;
  say(number, is ? count(waiting) : "–").className = is ? "" : "nothing";
  spark.hidden = !is;
  if (is) drawDepths(spark.firstChild, depths(backlogs));
  // Its backlogs share its throughput.
  const growth = known(backlogs, (one) => one.growth_per_second);
  say(pace, is ? trend(waiting, growth, waiting / -growth) : "");
  const parts = backlogs.map((one) => (backlogs.length > 1 ? `${one.queue} ${count(one.waiting)}` : one.queue));
  say(queues, parts.join(" · "));
}

function showReceivers(status) {
  const { receivers, backlogs } = status;
  const all = receiversOf(status);
  keep($("receivers"), all, (one) => one.webhook, receiverRow, updateReceiver);
  $("receivers-table").hidden = all.length === 0;
  const more = Math.max(receivers.matching - receivers.listed.length, backlogs.matching - backlogs.listed.length);
  const others = more > 0 ? ` The worst are listed; ${count(more)} more are not.` : "";
  const recent = `${count(receivers.known)} ${receivers.known === 1 ? "receiver" : "receivers"} got requests recently`;
  const matching = Math.max(receivers.matching, all.length);
  const found = matching === 0 ? "None of them matches; `webhooks list` shows all webhooks." : `${count(matching)} ${matching === 1 ? "matches" : "match"}.${others}`;
  const ailing = all.length === 0 ? "all of them are well, and no deliveries wait for them." : `these fail, are slow, or have a backlog; no other receiver waits for them.${others}`;
  const note = sought() ? `${recent}. ${found}` : `${recent}: ${ailing}`;
  // A screen reader reads it aloud when it changes.
  if ($("receivers-note").dataset.shown === note) return;
  $("receivers-note").dataset.shown = note;
  $("receivers-note").replaceChildren(...textNodes(note));
}

/** The words of the search. */
function sought() {
  return $("search").value.trim();
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP the browser offers no clipboard, but it still copies a selection.
    getSelection().selectAllChildren(button.previousSibling);
    if (!document.execCommand("copy")) return;
  }
  say(button, "copied");
  say($("announced"), `id ${text} copied`);
  setTimeout(() => say(button, "copy id"), 1500);
}

function show(status) {
  verdict(status);
  showFigures(status);
  const ages = status.sample_ages_seconds;
  const queues = queuesOf(status.lanes).map((queue) => ({ ...queue, ages }));
  keep($("queues"), queues, ({ origin }) => origin, queueRow, updateQueue);
  keep($("lanes"), status.lanes, (lane) => lane.queue, laneRow, updateLane);
  showTrends(status);
  showWaiting(status);
  showReceivers(status);
  const { version, host, pid, uptime_seconds, instances } = status;
  const others = instances.length > 1 ? `, one of ${instances.length} instances` : "";
  say($("instance"), `${version} on ${host}, process ${pid}, up for ${span(uptime_seconds)}${others}`);
  $("content").hidden = false;
}

let answered = null;
let asking = false;
let silent = false;

// In UTC by RFC 3339, as in the log.
const clock = (date) => date.toISOString().replace(/[.]\d+/, "");

/** Says that the notifier doesn't answer, and that the numbers are outdated. */
function showSilence() {
  const since = answered ? ` since ${clock(answered)}` : "";
  const what = answered ? "The numbers below are from then. " : "";
  if (answered) say($("as-of"), `As of ${clock(answered)}, ${span((Date.now() - answered) / 1000)} ago`);
  const remedy = `${what}Is its process running, and does the network reach it? If it is down, events wait in RabbitMQ, and nothing is lost.`;
  showVerdict("silent", `No answer from the notifier${since}.`, [{ what: "", remedy }]);
}

async function ask() {
  if (asking) return;
  asking = true;
  const words = sought();
  const query = words ? `?receivers=${encodeURIComponent(words)}` : "";
  try {
    const answer = await fetch("status.json" + query, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    [answered, silent] = [new Date(), false];
    show(status);
    say($("as-of"), `As of ${clock(answered)}, refreshed every ${INTERVAL / 1000} s`);
  } catch {
    silent = true;
    showSilence();
  } finally {
    asking = false;
  }
  // The search has changed meanwhile.
  if (words !== sought()) ask();
}

let typed;
$("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(ask, 200);
});

// A hidden page requests nothing.
setInterval(() => document.hidden || ask(), INTERVAL);
setInterval(() => silent && showSilence(), 1000);
document.addEventListener("visibilitychange", () => document.hidden || ask());
ask();
