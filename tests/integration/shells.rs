//! What a shell, a reader and a terminal get: completions, manual pages, colours.

use std::{fs, process::Command};

use crate::harness::{Launch, Process, SOON, Sandbox, notifier, service::Installation};

/// Runs a script, with the program's path as the first argument.
fn script(shell: &[&str], script: &str) -> String {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg(script).arg(notifier::binary());
    let finished = Process::spawn(command).finish(SOON);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{shell:?}: {finished:?}");
    finished.stdout
}

#[test]
fn bash_completes_commands_options_and_values() {
    let completed = |words: &str| {
        let completed = script(
            &["bash", "--norc", "--noprofile", "-c"],
            &format!(
                r#"source <("$0" completions bash)
                function=$(complete -p webhook-notifier | sed 's/.*-F \([^ ]*\).*/\1/')
                COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
                "$function" webhook-notifier "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
                printf '%s\n' "${{COMPREPLY[@]}}""#
            ),
        );
        completed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed("webhook-notifier dead-l"), ["dead-letters"]);
    assert_eq!(completed("webhook-notifier dead-letters re"), ["replay"]);
    assert_eq!(completed("webhook-notifier dead-letters list --old"), ["--older-than"]);
    assert_eq!(
        completed("webhook-notifier dead-letters list --reason ex"),
        ["exhausted", "expired"]
    );
    assert_eq!(completed("webhook-notifier queues move q --to ''"), ["quorum", "classic"]);
    assert_eq!(completed("webhook-notifier help runb"), ["runbook"]);
    assert_eq!(completed("webhook-notifier help dead-letters rep"), ["replay"]);
}

#[test]
fn fish_completes_commands_options_and_values() {
    let completed = |line: &str| {
        let completed = script(
            &["fish", "--no-config", "-c"],
            &format!("$argv[1] completions fish | source; complete -C '{line}'"),
        );
        // A description follows after a tab.
        let words = completed.lines().filter_map(|line| line.split('\t').next());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed("webhook-notifier dead-l"), ["dead-letters"]);
    assert_eq!(completed("webhook-notifier dead-letters rep"), ["replay"]);
    assert_eq!(completed("webhook-notifier dead-letters list --old"), ["--older-than"]);
    assert_eq!(completed("webhook-notifier dead-letters list --reason exh"), ["exhausted"]);
    assert_eq!(completed("webhook-notifier help runb"), ["runbook"]);
    assert_eq!(completed("webhook-notifier help dead-letters rep"), ["replay"]);
}

#[test]
fn zsh_finds_its_completion() {
    let found = script(
        &["zsh", "-f", "-c"],
        r#"autoload -Uz compinit && compinit -D -u
        source <("$0" completions zsh)
        print -r -- "${_comps[webhook-notifier]}"
        whence -w _webhook-notifier __webhook-notifier__subcmd__dead-letters_commands \
            _webhook-notifier__subcmd__dead-letters_commands 2>&1 | grep -c function"#,
    );
    let mut lines = found.lines();
    assert_eq!(lines.next(), Some("_webhook-notifier"), "{found}");
    assert!(lines.next().is_some_and(|count| count != "0"), "{found}");
}

#[test]
fn the_manual_has_a_page_for_each_command_and_a_guide_and_groff_finds_no_fault() {
    let installation = Installation::empty();
    let into = installation.path("/man");
    let named = into.to_str().expect("text");
    let secret = "amqp://user:s3cret-Pa55word@127.0.0.1:1/%2f";
    let written =
        Launch::new(&["man", "--into", named]).env("AMQP_URL", secret).spawn().finish(SOON);
    assert_eq!((written.code, written.stdout.as_str()), (Some(0), ""), "{written:?}");
    let files: Vec<_> = installation.files().into_iter().map(|(name, _)| name).collect();
    for page in [
        "man1/webhook-notifier.1",
        "man1/webhook-notifier-run.1",
        "man1/webhook-notifier-dead-letters.1",
        "man1/webhook-notifier-dead-letters-replay.1",
        "man1/webhook-notifier-webhooks-rotate-secret.1",
        "man7/webhook-notifier.7",
    ] {
        assert!(files.contains(&format!("/man/{page}")), "no {page} in {files:?}");
    }
    for file in files {
        let page = installation.path(&file);
        let text = fs::read_to_string(&page).expect("text");
        assert!(!text.contains("s3cret"), "{file}");
        let mut groff = Command::new("groff");
        groff.args(["-man", "-k", "-Tutf8", "-ww", "-P-cbou", "-rLL=78n"]).arg(&page);
        let finished = Process::spawn(groff).finish(SOON);
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{file}");
        if file.ends_with("dead-letters-replay.1") {
            for part in ["SYNOPSIS", "--older-than", "EXIT CODES", "EXAMPLE", "interrupted"] {
                assert!(finished.stdout.contains(part), "no {part} in {}", finished.stdout);
            }
        }
        if file.ends_with(".7") {
            for part in ["RUNBOOK", "A queue grows", "RETRY_SCHEDULE", "webhook_queue_messages"] {
                assert!(finished.stdout.contains(part), "no {part} in {}", finished.stdout);
            }
        }
    }
    let one = Launch::new(&["man", "dead-letters", "list"]).spawn().finish(SOON);
    assert!(one.stdout.contains(r"webhook\-notifier\-dead\-letters\-list \- Count"), "{one:?}");
    let none = Launch::new(&["man", "dead-letters", "lost"]).spawn().finish(SOON);
    assert_eq!(none.code, Some(2), "{none:?}");
}

#[test]
fn there_are_colours_on_a_terminal_and_nowhere_else() {
    let sandbox = Sandbox::new();
    sandbox.notifier().start().terminate();
    let binary = notifier::binary().display().to_string();
    // util-linux's `script` runs a command on a terminal.
    let on_terminal = |arguments: &str, variables: &[(&str, &str)]| {
        let mut launch = sandbox.launch(&[]);
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{binary} {arguments}"), "/dev/null"]);
        command.envs(launch.0.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        launch.0 = command;
        launch.spawn().finish(SOON).stdout
    };
    let wrong = "dead-letters list --queue nowhere";
    for (arguments, coloured) in [
        ("check", "\u{1b}[32mok  "),
        ("dead-letters list", "\u{1b}[1m  COUNT"),
        (wrong, "\u{1b}[1m\u{1b}[31mwebhook-notifier:"),
    ] {
        let shown = on_terminal(arguments, &[]);
        assert!(shown.contains(coloured), "{arguments}: {shown:?}");
        for variables in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
            let shown = on_terminal(arguments, &variables);
            assert!(!shown.contains('\u{1b}'), "{arguments}, {variables:?}: {shown:?}");
        }
        let arguments: Vec<_> = arguments.split(' ').collect();
        let piped = sandbox.launch(&arguments).env("TERM", "xterm").spawn().finish(SOON);
        let output = format!("{}{}", piped.stdout, piped.stderr);
        assert!(!output.contains('\u{1b}') && !output.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_misspelt_setting_is_reported_with_the_one_that_is_meant() {
    let sandbox = Sandbox::new();
    let installation = Installation::empty();
    let file = installation.path("/env");
    let named = file.to_str().expect("text");
    let text = "PREFETCH_CUONT=5\nNO_COLOR=1\nREQUEST_TIMEOUT=5s\nGREETING=s3cret\n";
    fs::write(&file, text).expect("it is ours");
    let finished = sandbox.command(&["webhooks", "list", "--env-file", named]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let warnings: Vec<_> = finished.stderr.lines().collect();
    assert_eq!(warnings.len(), 2, "{finished:?}");
    for (warning, expected) in warnings.iter().zip([
        "\"GREETING\" is not a setting, and is ignored",
        "\"PREFETCH_CUONT\" is not a setting: did you mean PREFETCH_COUNT?",
    ]) {
        assert!(warning.starts_with("webhook-notifier: warning: --env-file"), "{warning}");
        assert!(warning.ends_with(expected) && !warning.contains("s3cret"), "{warning}");
    }
    let mut notifier =
        sandbox.launch(&["run", "--env-file", named, "--metrics-addr", "127.0.0.1:0"]);
    notifier = notifier.env("ALLOW_NETWORKS", "127.0.0.0/8").env("CONECT_TIMEOUT", "1s");
    let mut notifier = notifier.start();
    notifier.wait_stderr(SOON, "did you mean PREFETCH_COUNT?");
    notifier.wait_stderr(SOON, "environment: \"CONECT_TIMEOUT\" is not a setting");
    notifier.terminate();
}
