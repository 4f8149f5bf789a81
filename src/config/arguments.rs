//! The settings for clap: each is a flag, a variable, a line of a file and a line of the help.

use std::ffi::OsString;

use clap::parser::ValueSource;

use super::{SETTINGS, Setting, Settings, env_file};
use crate::domain::shown::quoted;

/// The flag that names a file of variables. It isn't a setting itself.
const ENV_FILE: &str = "env-file";

/// Variables that may also be in such a file, because other programs and libraries read them from the
/// environment of the service.
const OTHERS: [&str; 9] = [
    "WEBHOOK_SECRET",
    "NO_COLOR",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "PATH",
    "HOME",
    "TZ",
    "LANG",
    "LC_ALL",
];

/// How similar a name must be to a setting to count as a misspelling of it, from 0 to 1: `AMPQ_URL` has 0.96
/// for AMQP_URL.
const MIN_SIMILARITY: f64 = 0.8;

/// How many letters of a variable of the environment may be wrong, missing, surplus or swapped if it is to
/// count as a misspelt setting: for names shorter than [`LONG_NAME`], and for others. Few, since an environment
/// has variables of other programs, too.
const MAX_TYPOS: [usize; 2] = [1, 2];
const LONG_NAME: usize = 12;

impl Settings {
    /// Variables of the environment that are probably misspelt settings: a line each. A variable whose setting
    /// is given as well is none.
    pub(super) fn misspelt_variables(&self) -> Vec<String> {
        let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        variables.filter_map(|name| self.misspelt_variable(&name)).collect()
    }

    fn misspelt_variable(&self, name: &str) -> Option<String> {
        if is_known(name) {
            return None;
        }
        let typos =
            |setting: &Setting| strsim::osa_distance(&name.to_uppercase(), setting.variable);
        let meant = SETTINGS.iter().min_by_key(|setting| typos(setting))?;
        let most = MAX_TYPOS[usize::from(meant.variable.len() >= LONG_NAME)];
        let is_meant = typos(meant) <= most && !self.given.contains_key(meant.variable);
        is_meant.then(|| {
            let (name, meant) = (quoted(name), meant.variable);
            format!("environment: {name} is not a setting: did you mean {meant}?")
        })
    }

    fn arguments(hidden: fn(&str) -> bool) -> impl Iterator<Item = clap::Arg> {
        let file = clap::Arg::new(ENV_FILE)
            .long(ENV_FILE)
            .value_parser(env_file::read)
            .value_name("FILE")
            .value_hint(clap::ValueHint::FilePath)
            .help(
                "Take variables from this file, which is read as systemd reads an EnvironmentFile; they \
                 override the environment, and flags override them [default: none]",
            )
            .help_heading("Configuration");
        let settings = SETTINGS.iter().map(move |setting| {
            let default = match setting.default {
                "" => "[default: none]".to_owned(),
                default => format!("[default: {default}]"),
            };
            clap::Arg::new(setting.variable)
                .long(setting.variable.to_lowercase().replace('_', "-"))
                .env(setting.variable)
                // A value that isn't UTF-8 gets our own error, which names the variable.
                .value_parser(clap::value_parser!(OsString))
                // Otherwise the help would print the passwords of the environment.
                .hide_env_values(true)
                .hide(hidden(setting.variable))
                .value_name(setting.value)
                .help(format!("{} {default}", setting.help))
                .help_heading("Configuration")
        });
        settings.chain([file])
    }
}

impl clap::Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(Self::arguments(|_| false))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Settings {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        let file = matches.get_one::<env_file::Variables>(ENV_FILE);
        for Setting { variable, .. } in &SETTINGS {
            let given = matches.get_one::<OsString>(variable).cloned();
            let by_flag = matches.value_source(variable) == Some(ValueSource::CommandLine);
            let in_file = || file?.get(*variable).map(OsString::from);
            if let Some(value) = if by_flag { given } else { in_file().or(given) } {
                self.given.insert(variable, value);
            }
        }
        self.warnings.extend(file.map(unknown_names).unwrap_or_default());
        Ok(())
    }
}

fn is_known(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.variable == name) || OTHERS.contains(&name)
}

/// Warnings about the names in a file that aren't settings, each with the most similar setting.
fn unknown_names(file: &env_file::Variables) -> Vec<String> {
    let mut names: Vec<_> = file.keys().filter(|name| !is_known(name)).collect();
    names.sort_unstable();
    names.into_iter().map(|name| unknown_name(name)).collect()
}

fn unknown_name(name: &str) -> String {
    let name = name.strip_prefix("export ").map_or(name, str::trim_start);
    let upper = name.to_uppercase();
    let similarity = |setting: &Setting| strsim::jaro_winkler(&upper, setting.variable);
    let nearest = SETTINGS.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let meant =
        nearest.filter(|setting| similarity(setting) >= MIN_SIMILARITY).map(|it| it.variable);
    // If it isn't a name, it may be a part of a value, perhaps of a secret.
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let named =
        if is_name { quoted(name) } else { "a line that does not begin with a name".to_owned() };
    match meant {
        Some(meant) => format!("--env-file: {named} is not a setting: did you mean {meant}?"),
        None => format!("--env-file: {named} is not a setting, and is ignored"),
    }
}

/// All settings, for commands whose help only shows the servers' addresses.
#[derive(Clone, Debug, Default)]
pub struct ServerSettings(pub Settings);

impl clap::Args for ServerSettings {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(Settings::arguments(|variable| !variable.ends_with("_URL")))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ServerSettings {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Settings::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_variable_that_differs_from_a_setting_by_a_letter_or_two_is_probably_meant() {
        let given = HashMap::from([("DATABASE_URL", OsString::new())]);
        let settings = Settings { given, ..Settings::default() };
        for (name, meant) in [
            ("AMPQ_URL", Some("AMQP_URL")),
            ("amqp_url", Some("AMQP_URL")),
            ("QUEUE", Some("QUEUES")),
            ("ALLOWED_NETWORKS", Some("ALLOW_NETWORKS")),
            ("REQUEST_TIME_OUT", Some("REQUEST_TIMEOUT")),
            ("DATABASE_URI", None),
            ("DATABASE_NAME", None),
            ("SSL_CA_FILE", None),
            ("RUST_BACKTRACE", None),
            ("LOGNAME", None),
            ("AMQP_URL", None),
            ("HOME", None),
        ] {
            let warning = settings.misspelt_variable(name);
            let expected = meant.map(|meant| {
                format!("environment: \"{name}\" is not a setting: did you mean {meant}?")
            });
            assert_eq!(warning, expected, "{name}");
        }
    }

    #[test]
    fn a_name_that_is_not_a_setting_is_reported_with_the_nearest_setting() {
        for (name, meant) in [
            ("AMPQ_URL", "AMQP_URL"),
            ("amqp_url", "AMQP_URL"),
            ("export AMQP_URL", "AMQP_URL"),
            ("QUEUE", "QUEUES"),
            ("PREFETCH", "PREFETCH_COUNT"),
            ("REQUEST_TIME_OUT", "REQUEST_TIMEOUT"),
            ("ALLOWED_NETWORKS", "ALLOW_NETWORKS"),
            ("FANOUT", "FANOUT_INLINE"),
        ] {
            assert!(
                unknown_name(name).contains(&format!("did you mean {meant}?")),
                "{}",
                unknown_name(name)
            );
        }
        assert!(unknown_name("GREETING").contains("\"GREETING\" is not a setting, and is ignored"));
        assert!(!unknown_name("s3cret/+").contains("s3cret"), "{}", unknown_name("s3cret/+"));
        let file = ["AMQP_URL", "NO_COLOR", "TZ"].map(|name| (name.to_owned(), String::new()));
        assert_eq!(unknown_names(&file.into()), Vec::<String>::new());
    }
}
