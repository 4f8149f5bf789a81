"use strict";

// Asks for status.json every few seconds and shows what it says. Everything that came over the
// network becomes text, never markup. What is there already stays and gets new numbers, so that
// a selection or the focus outlives a refresh.

const INTERVAL = 5000; // as often as the notifier samples
const PATIENCE = 10000; // no answer after this is none
const SPAN = 900; // seconds that the plots show
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const digits = new Intl.NumberFormat("en");
const decimals = [0, 1, 2].map((most) => new Intl.NumberFormat("en", { maximumFractionDigits: most }));

const count = (number) => (number == null ? "–" : digits.format(number));
const short = (number) => decimals[number >= 100 ? 0 : number >= 10 ? 1 : 2].format(number);
const rate = (number) => (number == null ? "–" : `${short(number)}/s`);
const sum = (list, of) => list.reduce((all, one) => all + (of(one) ?? 0), 0);
const known = (list, of) => (list.some((one) => of(one) != null) ? sum(list, of) : null);

/** About so long, in the unit or two that matter. */
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

/** A quantile's bound. */
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

/** One child of `parent` for each item, in their order; those of the same key are kept. */
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

/** The text, with what stands in backticks as code. */
function worded(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

const MARKS = { well: "✓", attention: "!", trouble: "✕", silent: "?" };

function showVerdict(state, headline, advice) {
  const shown = JSON.stringify([state, headline, advice]);
  // So that what somebody is about to copy stays.
  if ($("verdict").dataset.shown === shown) return;
  $("verdict").dataset.shown = shown;
  $("verdict").hidden = false;
  // Read aloud by a screen reader: not each second that it lasts.
  if (headline.replace(/\d+/g, "") !== $("announced").textContent.replace(/\d+/g, "")) {
    say($("announced"), headline);
  }
  $("verdict").className = `verdict ${state === "silent" ? "trouble" : state}`;
  say($("mark"), MARKS[state]);
  say($("headline"), headline);
  $("advice").replaceChildren(
    ...advice.map(({ what, remedy }) =>
      make("li", {}, ...(what ? [make("strong", {}, what)] : []), ...worded(remedy)),
    ),
  );
  document.title = `${MARKS[state]} ${headline} – webhook-notifier`;
  document.body.classList.toggle("silent", state === "silent");
}

/** All is well, or the worst of what is wrong; below it what to do, and the rest. */
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

function figures({ broker, database, database_problem: problem, lanes, waiting, receivers, depths_age_seconds: age }) {
  const rates = (which) => rate(known(lanes, (lane) => lane.rates?.[which]));
  const total = (which) => `${count(sum(lanes, (lane) => lane[which]))} since the start`;
  const dead = known(lanes, (lane) => lane.dead);
  const late = age != null && !broker.answers ? `as of ${span(age)} ago` : "";
  const { ailing, broken } = receivers;
  return [
    ["RabbitMQ", ...server(broker)],
    ["PostgreSQL", ...server(database, problem), "webhook_database_up"],
    ["Delivered", rates("delivered"), total("delivered"), "", "webhook_request_success_total"],
    ["Failed attempts", rates("failed"), total("failed"), "", "webhook_request_failure_total"],
    ["Requests in flight", count(sum(lanes, (lane) => lane.in_flight)), "", "", "webhook_requests_in_flight"],
    ["Waiting for an attempt", count(known(waiting, (one) => one.messages)), late, "", 'webhook_queue_messages{queue=~"webhooks.wait.*"}'],
    ["Dead letters", count(dead), late, dead > 0 ? "is-attention" : "", 'webhook_queue_messages{queue=~".*.dead"}'],
    ["Ailing receivers", count(ailing), broken ? `${count(broken)} with an open circuit breaker` : "", broken ? "is-attention" : "", "webhook_receivers_ailing"],
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
      say(main, value).className = tone;
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

/** A cell's text, a smaller line below it, and the metric that it is. */
function fill(cell, text, more = "", metric = "") {
  if (!cell.firstChild) cell.append(make("span"), make("small"));
  say(cell.firstChild, text);
  say(cell.lastChild, more);
  cell.classList.toggle("nothing", /^(–|0|0\/s)$/.test(text));
  if (metric) cell.firstChild.title = cell.lastChild.title = metric;
  return cell;
}

function laneRow({ queue, kind }) {
  const row = make("tr", { role: "row", class: kind === "events" ? "" : "retry" });
  row.append(make("th", { role: "rowheader", scope: "row" }, make("bdi", {}, queue)));
  const labels = ["State", "Ready", "In flight", "Received", "Delivered", "Failed", "Lag p50", "Lag p99", "Dead letters"];
  cells(row, labels, 2);
  row.children[1].classList.add("state");
  return row;
}

function updateLane(row, lane) {
  const label = (queue) => `{queue=${JSON.stringify(queue)}}`;
  const of = label(lane.queue);
  const [, state, ready, inFlight, received, delivered, failed, p50, p99, dead] = row.children;
  const [word, tone] = STATES[lane.state] ?? [lane.state, ""];
  const wrong = lane.state === "consuming" ? "" : `for ${span(lane.lasted_seconds)}`;
  fill(state, word, wrong, `webhook_broker_connected${of}`);
  state.firstChild.className = tone;
  fill(ready, count(lane.ready), "", `webhook_queue_messages${of}`);
  const inUse = lane.capacity == null ? "" : `${count(lane.in_use)} of ${count(lane.capacity)}`;
  fill(inFlight, count(lane.in_flight), inUse, `webhook_requests_in_flight${of}`);
  fill(received, rate(lane.rates?.received), count(lane.received), `webhook_events_received_total${of}`);
  fill(delivered, rate(lane.rates?.delivered), count(lane.delivered), `webhook_request_success_total${of}`);
  fill(failed, rate(lane.rates?.failed), count(lane.failed), `webhook_request_failure_total${of}`);
  fill(p50, bound(lane.lag_p50), "", `webhook_delivery_lag_seconds${of}`);
  fill(p99, bound(lane.lag_p99), "", `webhook_delivery_lag_seconds${of}`);
  if (lane.kind === "events") {
    fill(dead, count(lane.dead), "", `webhook_queue_messages${label(`${lane.origin}.dead`)}`);
    dead.firstChild.className = lane.dead > 0 ? "is-attention" : "";
  }
}

/** The next round number that is not below. */
function ceiling(number) {
  if (!(number > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(number));
  const round = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power);
  // A hair less, as 0.3 is a little more than three times 0.1.
  return round.find((step) => step >= number * 0.999999) ?? number;
}

/** What the lanes counted in each step, as rates: [age of its begin, age of its end, per second]. */
function steps(ages, lanes, which) {
  return ages.slice(1).map((end, at) => {
    const begin = ages[at];
    const all = sum(lanes, (lane) => lane.trend[which][at]);
    return { begin, end, all, rate: begin > end ? all / (begin - end) : 0 };
  });
}

function strip(which, name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SPAN} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.append(document.createElementNS(SVG, "path"));
  const caption = make("figcaption", {}, make("i", { "aria-hidden": "true" }), name, make("b"), make("small"));
  const plot = make("div", { class: "plot" }, svg, make("span", { "aria-hidden": "true" }));
  return make("figure", { class: `strip ${which}` }, caption, plot);
}

function updateStrip(node, title, which, ages, lanes) {
  const all = steps(ages, lanes, which);
  const peak = Math.max(0, ...all.map((step) => step.rate));
  const total = sum(all, (step) => step.all);
  const top = ceiling(peak);
  const now = rate(known(lanes, (lane) => lane.rates?.[which]));
  const x = (age) => (SPAN - Math.min(age, SPAN)).toFixed(1);
  // A little below the top, so that its line is not cut; what is not nothing can be seen.
  const y = (rate) => (rate > 0 ? Math.min(94, 100 - (rate / top) * 96) : 100).toFixed(1);
  const line = all.map(({ begin, end, rate }) => `L${x(begin)} ${y(rate)}H${x(end)}`).join("");
  const path = all.length && total ? `M${x(all[0].begin)} 100${line}L${x(all.at(-1).end)} 100Z` : "";
  const svg = node.querySelector("svg");
  svg.firstChild.setAttribute("d", path);
  const range = `at most ${rate(peak)}, ${count(total)} in all`;
  svg.setAttribute("aria-label", `${title}, ${which} per second over the last 15 minutes: now ${now}, ${range}`);
  say(node.querySelector("b"), now);
  say(node.querySelector("small"), `${count(total)} in 15 min`);
  say(node.querySelector(".plot span"), total ? short(top) : "none");
}

function showTrends({ sample_ages_seconds: ages, lanes }) {
  const origins = [...new Set(lanes.map((lane) => lane.origin))];
  const plots = origins.map((origin) => ({
    key: `queue ${origin}`,
    title: origin,
    lanes: lanes.filter((lane) => lane.origin === origin),
  }));
  if (plots.length > 1) plots.unshift({ key: "all", title: "All queues", lanes });
  keep(
    $("trends"),
    plots,
    (plot) => plot.key,
    ({ key, title }) => {
      const axis = make("div", { class: "axis", "aria-hidden": "true" });
      axis.append(make("span", {}, "15 min ago"), make("span", {}, "now"));
      const strips = [strip("delivered", "Delivered"), strip("failed", "Failed")];
      return make("div", { class: key === "all" ? "trend whole" : "trend" }, make("h3", {}, make("bdi", {}, title)), ...strips, axis);
    },
    (node, { title, lanes }) => {
      for (const which of ["delivered", "failed"]) {
        updateStrip(node.querySelector(`.${which}`), title, which, ages, lanes);
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
  open: ["✕ circuit breaker open", "is-trouble"],
  half_open: ["… being probed", "is-attention"],
  stay_away: ["… asked us to wait", "is-attention"],
  failing: ["! failing", "is-attention"],
  slow: ["! slow", "is-attention"],
};

const REASONS = {
  status_1xx: "a status 1xx",
  status_3xx: "a redirect",
  status_4xx: "a status 4xx",
  status_5xx: "a status 5xx",
  timeout: "no answer in time",
  refused: "connection refused",
  reset: "connection lost",
  dns: "its name is not found",
  tls: "TLS",
  protocol: "no HTTP",
  proxy: "the egress proxy",
  io: "network",
};

function why({ failures, reason }) {
  if (!failures) return "a request took over a second";
  const words = REASONS[reason] ?? reason;
  return failures === 1 ? `last attempt failed: ${words}` : `${count(failures)} failures in a row, last: ${words}`;
}

function next({ is_probed, next_in_seconds }) {
  if (is_probed) return "under way";
  return next_in_seconds == null ? "with its next delivery" : `in ${span(next_in_seconds)}`;
}

const CAUSES = {
  share: "it has its share of the capacity",
  group: "its account or host has its share of the capacity",
  slow: "it is slow, and so are as many requests as may be",
  unproven: "it has not answered yet",
  ramp: "it had too many requests, and gets fewer now",
  full: "all of the capacity is in use",
  breaker: "its circuit breaker is open",
  retry_after: "it asked us to stay away",
  max_in_flight: "its webhook's max_in_flight",
  rate: "its webhook's rate_per_second",
  behind: "being sent, in order",
  paused: "paused",
};

function held({ cause, next_in_seconds }) {
  const words = CAUSES[cause] ?? cause;
  return next_in_seconds == null ? words : `${words}, asked again in ${span(next_in_seconds)}`;
}

function owner({ account }) {
  return account == null ? "" : ` of account ${account}`;
}

function showBacklogs({ backlogs }) {
  $("backlogs-section").hidden = backlogs.listed.length === 0;
  keep(
    $("backlogs"),
    backlogs.listed,
    (one) => `${one.queue} ${one.webhook}`,
    ({ webhook }) => {
      const row = make("tr", { role: "row" });
      row.append(make("th", { role: "rowheader", scope: "row" }, make("code", {}, webhook), make("small")));
      cells(row, ["Queue", "Waiting", "For", "Why", "Empty"], Infinity);
      row.children[4].classList.add("wide");
      return row;
    },
    (row, one) => {
      const [webhook, queue, waiting, lasted, cause, empty] = row.children;
      say(webhook.lastChild, owner(one));
      fill(queue, one.queue);
      fill(waiting, count(one.waiting));
      fill(lasted, span(one.lasted_seconds));
      fill(cause, held(one));
      fill(empty, one.empty_in_seconds == null ? "–" : `in ${span(one.empty_in_seconds)}, at this pace`);
    },
  );
  const more = backlogs.filled - backlogs.listed.length;
  say(
    $("backlogs-note"),
    `${more > 0 ? `And ${count(more)} more. ` : ""}What these receivers can't take now waits here in order, and follows as soon as they can.`,
  );
}

function showReceivers({ receivers }) {
  keep(
    $("receivers"),
    receivers.listed,
    (one) => one.webhook,
    ({ webhook }) => {
      const row = make("tr", { role: "row" });
      row.append(make("th", { role: "rowheader", scope: "row" }, make("code", {}, webhook), make("small")));
      cells(row, ["State", "Why", "For", "Next attempt"], Infinity);
      row.children[2].classList.add("wide");
      return row;
    },
    (row, one) => {
      const [webhook, state, reason, lasted, attempt] = row.children;
      say(webhook.lastChild, owner(one));
      const [word, tone] = CONDITIONS[one.condition] ?? [one.condition, ""];
      fill(state, word).firstChild.className = tone;
      fill(reason, why(one));
      fill(lasted, span(one.lasted_seconds));
      fill(attempt, next(one));
    },
  );
  const more = receivers.ailing - receivers.listed.length;
  $("receivers-table").hidden = receivers.listed.length === 0;
  say(
    $("receivers-note"),
    receivers.listed.length === 0
      ? "None: nobody's last attempt failed, and no request took over a second lately."
      : `${more > 0 ? `And ${count(more)} more. ` : ""}As this process has seen them; their deliveries wait, and nobody else's do.`,
  );
}

function show(status) {
  verdict(status);
  showFigures(status);
  keep($("lanes"), status.lanes, (lane) => lane.queue, laneRow, updateLane);
  showTrends(status);
  showWaiting(status);
  showBacklogs(status);
  showReceivers(status);
  const { version, host, pid, uptime_seconds } = status;
  say($("instance"), `${version} on ${host}, process ${pid}, up for ${span(uptime_seconds)}`);
  $("content").hidden = false;
}

let answered = null;
let asking = false;
let silent = false;

const clock = (date) => date.toLocaleTimeString("en-GB");

/** It does not answer: what is shown is old, and that must be plain. */
function showSilence() {
  const since = answered ? ` since ${clock(answered)}` : "";
  const what = answered ? "What is below is as of then. " : "";
  if (answered) say($("as-of"), `As of ${clock(answered)}, ${span((Date.now() - answered) / 1000)} ago`);
  const remedy = `${what}Does its process run, and does the way to it work? While it is away, events wait at RabbitMQ and nothing is lost.`;
  showVerdict("silent", `No answer from the notifier${since}.`, [{ what: "", remedy }]);
}

async function ask() {
  if (asking) return;
  asking = true;
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    [answered, silent] = [new Date(), false];
    show(status);
    say($("as-of"), `As of ${clock(answered)}, asked every ${INTERVAL / 1000} s`);
  } catch {
    silent = true;
    showSilence();
  } finally {
    asking = false;
  }
}

// A page that nobody looks at asks nothing.
setInterval(() => document.hidden || ask(), INTERVAL);
setInterval(() => silent && showSilence(), 1000);
document.addEventListener("visibilitychange", () => document.hidden || ask());
ask();
