//! The binary. All code is in the library; it starts at [`webhook_notifier::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    webhook_notifier::cli::main()
}
