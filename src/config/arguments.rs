//! The settings as clap sees them: a flag, a variable, a line of a file and of the help for each.

use std::ffi::OsString;

use clap::parser::ValueSource;

use super::{SETTINGS, Setting, Settings, env_file};

/// The flag that names a file of variables. Not a setting: it says where settings are.
const ENV_FILE: &str = "env-file";

impl Settings {
    fn arguments(hidden: fn(&str) -> bool) -> impl Iterator<Item = clap::Arg> {
        let file = clap::Arg::new(ENV_FILE)
            .long(ENV_FILE)
            .value_parser(env_file::read)
            .value_name("FILE")
            .help(
                "Take variables from this file, which is read as systemd reads an EnvironmentFile; \
                 they count more than the environment's, and less than flags [default: none]",
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
                // What is not UTF-8 is ours to say, by the variable's name.
                .value_parser(clap::value_parser!(OsString))
                // The help must not print the password that the environment holds.
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
                self.0.insert(variable, value);
            }
        }
        Ok(())
    }
}

/// All settings, for commands whose help needs to show only where the servers are.
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
