//! The examples of the help texts.

use clap::{Command, CommandFactory as _, Parser as _};

use super::CommandLine;

#[test]
fn every_command_has_examples_that_can_be_parsed() {
    let mut count = 0;
    for_each(&CommandLine::command(), &mut |command| {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_else(|| panic!("{} has no examples", command.get_name()));
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        for example in examples.lines().filter_map(|line| line.strip_prefix("  ")) {
            let words = words_of(example);
            let parsed = CommandLine::try_parse_from(&words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            count += 1;
        }
    });
    assert!(count > 20, "{count}");
}

fn for_each(command: &Command, check: &mut dyn FnMut(&Command)) {
    check(command);
    command.get_subcommands().for_each(|it| for_each(it, check));
}

/// Returns the words of the program's part of a line for a shell.
fn words_of(line: &str) -> Vec<String> {
    let part = line.split(" | ").find(|part| part.starts_with("idemptx")).unwrap();
    let part = part.split(" > ").next().unwrap();
    let (mut words, mut quote) = (vec![String::new()], None);
    for character in part.chars() {
        match quote {
            Some(open) if open == character => quote = None,
            None if character == '\'' || character == '"' => quote = Some(character),
            None if character == ' ' => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    words
}
