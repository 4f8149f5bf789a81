//! The text that /metrics serves, parsed.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Exposition {
    /// From name to type: counter, gauge, histogram.
    pub(crate) types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Exposition {
    pub(crate) fn parse(text: &str) -> Self {
        let mut types = BTreeMap::new();
        let mut samples = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(declaration) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declaration.split_once(' ').expect("# TYPE name type");
                types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                samples.push(Sample::parse(line));
            }
        }
        Self { types, samples }
    }

    /// The sum of all samples of that name whose labels include the given ones.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|sample| sample.name == name && sample.has(labels))
            .map(|sample| sample.value)
            .sum()
    }

    /// The sample of that name with exactly those labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.samples
            .iter()
            .find(|sample| {
                sample.name == name && sample.labels.len() == labels.len() && sample.has(labels)
            })
            .map(|sample| sample.value)
    }

    /// The names of all labels on samples of that name.
    pub(crate) fn labels(&self, name: &str) -> BTreeSet<&str> {
        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .flat_map(|sample| sample.labels.keys().map(String::as_str))
            .collect()
    }
}

impl Sample {
    /// `name{label="value",…} 1.5`. No label value of ours holds a quote, a
    /// comma or a brace.
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').expect("series value");
        let (name, labels) = series
            .strip_suffix('}')
            .and_then(|series| series.split_once('{'))
            .unwrap_or((series, ""));
        let labels = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| {
                let (name, value) = label.split_once('=').expect("label=\"value\"");
                (name.to_owned(), value.trim_matches('"').to_owned())
            })
            .collect();
        Self { name: name.to_owned(), labels, value: value.parse().expect("a number") }
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|own| own == value))
    }
}
