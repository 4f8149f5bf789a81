//! Enough of PromQL to see which metrics an expression uses, and how.

use std::collections::BTreeSet;

/// Words that are neither functions nor metrics.
const WORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

/// Words that a list of labels follows, or may follow.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// One use of a metric in an expression.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) metric: String,
    /// Labels of its selector.
    pub(super) labels: BTreeSet<String>,
    /// The functions and aggregations around it, the innermost last.
    pub(super) functions: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Text,
    Sign(char),
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(next) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_:.".contains(c);
        let length = if next == '"' || next == '\'' {
            tokens.push(Token::Text);
            2 + text_length(&rest[1..], next)
        } else if next.is_ascii_digit() {
            // A number or a duration.
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if is_word(next) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Name(rest[..length].to_owned()));
            length
        } else {
            if !next.is_whitespace() {
                tokens.push(Token::Sign(next));
            }
            next.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of a text after its opening quote, without the closing one.
fn text_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = text.find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.expect("a text ends")
}

/// The metrics that an expression uses, in order.
pub(super) fn uses(expression: &str) -> Vec<Use> {
    let mut uses: Vec<Use> = Vec::new();
    let mut functions = Vec::new();
    walk(&tokens(expression), |step| match step {
        Step::Enter(function) => functions.push(function.to_owned()),
        Step::Leave => {
            functions.pop();
        }
        Step::Metric(metric) => uses.push(Use {
            metric: metric.to_owned(),
            labels: BTreeSet::new(),
            functions: functions.iter().filter(|name| !name.is_empty()).cloned().collect(),
        }),
        Step::Matcher(label) => {
            let used = uses.last_mut().expect("a selector has a metric");
            used.labels.insert(label.to_owned());
        }
        Step::Grouping(_) => {}
    });
    uses
}

/// The labels that an expression groups or matches by. `le` and labels that are summed away count, too.
pub(super) fn grouping_labels(expression: &str) -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    walk(&tokens(expression), |step| {
        if let Step::Grouping(label) = step {
            labels.insert(label.to_owned());
        }
    });
    labels
}

enum Step<'a> {
    /// A parenthesis opens, after a function's name or nothing.
    Enter(&'a str),
    Leave,
    Metric(&'a str),
    Matcher(&'a str),
    Grouping(&'a str),
}

fn walk<'a>(tokens: &'a [Token], mut visit: impl FnMut(Step<'a>)) {
    let mut tokens = tokens.iter().peekable();
    let mut function = "";
    while let Some(token) = tokens.next() {
        match token {
            Token::Name(word) if LISTS.contains(&word.as_str()) => {
                if tokens.next_if_eq(&&Token::Sign('(')).is_some() {
                    for token in tokens.by_ref().take_while(|token| **token != Token::Sign(')')) {
                        if let Token::Name(label) = token {
                            visit(Step::Grouping(label));
                        }
                    }
                }
            }
            Token::Name(word) if WORDS.contains(&word.as_str()) => {}
            Token::Name(word) => match tokens.peek() {
                Some(Token::Sign('(')) => function = word,
                // An aggregation with its labels first.
                Some(Token::Name(list)) if ["by", "without"].contains(&list.as_str()) => {
                    function = word;
                }
                _ => visit(Step::Metric(word)),
            },
            Token::Sign('{') => {
                for token in tokens.by_ref().take_while(|token| **token != Token::Sign('}')) {
                    if let Token::Name(label) = token {
                        visit(Step::Matcher(label));
                    }
                }
            }
            Token::Sign('(') => visit(Step::Enter(std::mem::take(&mut function))),
            Token::Sign(')') => visit(Step::Leave),
            Token::Sign(_) | Token::Text => {}
        }
    }
}

#[test]
fn these_tests_read_expressions_as_prometheus_does() {
    let expression = r#"histogram_quantile(0.5, sum without (instance, queue) (rate(a_bucket{x=~"y,z=\"}"}[30m])))
        > ignoring (reason) group_left 0.01 * b:c and on (job) max by (job) (time() - d offset 5m) > 1e3"#;
    let used = |metric: &str, labels: &[&str], functions: &[&str]| Use {
        metric: metric.to_owned(),
        labels: labels.iter().copied().map(str::to_owned).collect(),
        functions: functions.iter().copied().map(str::to_owned).collect(),
    };
    let expected = [
        used("a_bucket", &["x"], &["histogram_quantile", "sum", "rate"]),
        used("b:c", &[], &[]),
        used("d", &[], &["max"]),
    ];
    assert_eq!(uses(expression), expected);
    let labels: Vec<_> = grouping_labels(expression).into_iter().collect();
    assert_eq!(labels, ["instance", "job", "queue", "reason"]);
}
