//! Grafana's dashboard, read as Grafana reads it, as far as that is possible without Grafana.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;

use super::{folder, text};

/// The width of Grafana's grid, in columns.
const COLUMNS: u64 = 24;

/// What Grafana substitutes for variables: the range that a rate needs, and, if all is selected, a
/// pattern that matches everything.
const VARIABLES: [(&str, &str); 3] =
    [("$__rate_interval", "10s"), ("$instance", ".+"), ("$queue", ".+")];

fn dashboard() -> Value {
    let json = fs::read_to_string(folder().join("grafana-dashboard.json")).expect("it is text");
    serde_json::from_str(&json).expect("it is JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The expression of each target, by panel and target.
pub(super) fn expressions() -> BTreeMap<String, String> {
    let mut expressions = BTreeMap::new();
    for panel in list(&dashboard()["panels"]).iter().filter(|panel| panel["type"] != "row") {
        for target in list(&panel["targets"]) {
            let place = format!("{} {}", text(&panel["title"]), text(&target["refId"]));
            let mut expression = text(&target["expr"]).to_owned();
            for (variable, value) in VARIABLES {
                expression = expression.replace(variable, value);
            }
            assert!(!expression.contains('$'), "an unknown variable in {place}: {expression}");
            assert!(expressions.insert(place.clone(), expression).is_none(), "{place} twice");
        }
    }
    expressions
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(38), "older than Grafana 10");
    // Grafana assigns these.
    assert!(dashboard["id"].is_null() && dashboard["uid"].is_null());
    let variables: BTreeSet<_> = list(&dashboard["templating"]["list"])
        .iter()
        .map(|variable| text(&variable["name"]))
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "instance", "queue"]));
    let mut open = vec![&dashboard];
    while let Some(value) = open.pop() {
        if let Some(source) = value.get("datasource") {
            assert_eq!(source["uid"], "${datasource}", "{value}");
        }
        open.extend(value.as_object().into_iter().flat_map(|object| object.values()));
        open.extend(value.as_array().into_iter().flatten());
    }
}

#[test]
fn each_panel_has_its_place_its_unit_and_an_explanation() {
    let dashboard = dashboard();
    let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "the id of {title} is taken");
        assert!(titles.insert(title), "{title} twice");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= COLUMNS, "{title} is out of the grid");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} is on top of another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(&panel["description"]).ends_with('.'), "{title} is not explained");
        assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title} has no unit");
        for target in list(&panel["targets"]) {
            assert!(!text(&target["legendFormat"]).is_empty(), "{title} has no legend");
        }
    }
    assert!(titles.len() > 20, "only {titles:?}");
}
