//! The binary; everything is in the library, from [`webhook_notifier::cli`] on.

use std::process::ExitCode;

fn main() -> ExitCode {
    webhook_notifier::cli::main()
}
