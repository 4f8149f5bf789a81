//! `completions` and `man`: generate shell completions and manual pages from the program's own arguments and
//! the topics of the manual.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory, ValueEnum, ValueHint};

use super::{Cli, NAME, Usage, topics};

mod guide;
pub(super) mod markdown;
mod page;
pub(super) mod plain;

/// The page with all topics of the manual; it describes no command.
const GUIDE: &str = "guide";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The command, such as `dead-letters list`; or `guide`, for all topics of the manual [default: the
    /// program itself]
    #[arg(value_name = "COMMAND")]
    of: Vec<String>,
    /// Write all pages below this directory instead, in man1 and man7
    #[arg(long, value_name = "DIR", conflicts_with = "of", value_hint = ValueHint::DirPath)]
    into: Option<PathBuf>,
}

/// Prints the script that a shell needs to complete our arguments.
pub(super) fn completions(shell: Shell) -> Result<()> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut topics::for_completions(Cli::command()), NAME, &mut script);
    // In its script for bash, clap_complete 4.6 gives a program with a hyphen two different names.
    let script =
        String::from_utf8(script)?.replace("webhook__subcmd__notifier", "webhook__notifier");
    write(script.as_bytes())
}

/// Prints one page, or writes all of them.
pub(super) fn man(Man { of, into }: Man) -> Result<()> {
    let program = program();
    if let Some(directory) = into {
        return write_all(&program, &directory);
    }
    if of == [GUIDE] {
        return write(&guide::page());
    }
    let mut command = &program;
    for name in &of {
        command = command.find_subcommand(name).ok_or_else(|| {
            let named = of.join(" ");
            Usage(format!(
                "there is no command {named:?}: see `{NAME} --help`, or `{NAME} man {GUIDE}`"
            ))
        })?;
    }
    write(&page::of(command)?)
}

/// The program, built so that its commands have the names of their pages.
fn program() -> Command {
    let mut program = Cli::command();
    program.build();
    program
}

fn write_all(program: &Command, directory: &Path) -> Result<()> {
    let put = |section: &str, name: &str, page: &[u8]| {
        let folder = directory.join(format!("man{section}"));
        let path = folder.join(format!("{name}.{section}"));
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, page));
        written.with_context(|| format!("cannot write {}", path.display()))
    };
    let mut open = vec![program];
    while let Some(command) = open.pop() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        put("1", name, &page::of(command)?)?;
        open.extend(command.get_subcommands().filter(|command| !command.is_hide_set()));
    }
    put("7", NAME, &guide::page())
}

fn write(text: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(())
}
