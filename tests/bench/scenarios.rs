//! The scenarios, and the run of the selected ones.

mod throughput;
mod latency;
mod isolation;
mod fairness;
mod memory;
mod start;
mod backlog;
mod dead;
mod away;
mod refused;
mod rate;
mod pause;
mod waiting;
mod split;
mod fanout;
mod far;
mod flaky;
mod outage;
mod hostile;
mod hung_event;
mod half_hung;
mod scale;
mod one_receiver;

use std::{fs, process::ExitCode, time::Instant};

use crate::{report::Report, settings::Settings};

struct Scenario {
    name: &'static str,
    /// Whether a run without names includes it.
    usual: bool,
    run: fn(&Settings, &mut Report),
}

const fn usual(name: &'static str, run: fn(&Settings, &mut Report)) -> Scenario {
    Scenario { name, usual: true, run }
}

const fn on_request(name: &'static str, run: fn(&Settings, &mut Report)) -> Scenario {
    Scenario { name, usual: false, run }
}

const SCENARIOS: [Scenario; 27] = [
    usual("default", throughput::by_default),
    on_request("tuned", throughput::tuned),
    usual("latency", latency::run),
    usual("isolation", isolation::run),
    usual("fairness", fairness::run),
    usual("far", far::by_default),
    usual("far-512", far::wide),
    usual("flaky", flaky::run),
    usual("outage", outage::run),
    usual("hostile", hostile::run),
    usual("hung-event", hung_event::run),
    usual("half-hung", half_hung::run),
    usual("fanout", fanout::run),
    usual("split", split::run),
    usual("memory", memory::run),
    usual("start", start::run),
    usual("backlog", backlog::run),
    usual("rate", rate::run),
    usual("pause", pause::run),
    on_request("dead", dead::run),
    on_request("away", away::run),
    on_request("refused", refused::run),
    on_request("waiting", waiting::run),
    on_request("scale", scale::run),
    on_request("earlier", throughput::since_earlier),
    on_request("search", throughput::search_bare),
    on_request("search-notifier", throughput::search_notifier),
];

/// Runs the scenarios of these names, or the usual ones, and prints the results.
pub(crate) fn run(names: &[String]) -> ExitCode {
    let unknown = names.iter().find(|name| SCENARIOS.iter().all(|known| known.name != **name));
    let settings = match (unknown, Settings::from_environment()) {
        (None, Ok(settings)) => settings,
        (Some(name), _) => return usage(&format!("there is no scenario {name}")),
        (None, Err(problem)) => return usage(&problem),
    };
    let is_selected = |scenario: &&Scenario| match names {
        [] => scenario.usual,
        names => names.iter().any(|name| name == scenario.name),
    };
    let began = Instant::now();
    let mut report = Report::default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average at the start: {}", load.trim());
    for scenario in SCENARIOS.iter().filter(is_selected) {
        println!("\n== {} (after {:.0} s)", scenario.name, began.elapsed().as_secs_f64());
        (scenario.run)(&settings, &mut report);
    }
    println!("\n{report}");
    println!("the run took {:.0} s", began.elapsed().as_secs_f64());
    if report.has_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage(problem: &str) -> ExitCode {
    let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    eprintln!("{problem}; the scenarios are {}", names.join(", "));
    ExitCode::from(2)
}
