//! The scripts by which shells complete the command line.

use std::process::Command;

use crate::support::command::idemptx;

#[test]
fn each_shell_has_a_script_that_knows_the_commands_and_their_flags() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = idemptx(&["completions", shell]).good().stdout.clone();
        for word in ["serve", "completions", "purge", "upstream", "on-ambiguous"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(idemptx(&["completions", "tcsh"]).code, 2);
}

#[test]
fn bash_completes_commands_and_flags() {
    let completed = |words: &str, current: usize| {
        let script = format!(
            "source <({:?} completions bash); COMP_WORDS=({words}); COMP_CWORD={current}; \
             _idemptx idemptx \"${{COMP_WORDS[{current}]}}\" \"${{COMP_WORDS[{current} - 1]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            env!("CARGO_BIN_EXE_idemptx")
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed("idemptx ser", 1), "serve");
    assert_eq!(completed("idemptx keys res", 2), "resolve");
    assert_eq!(completed("idemptx serve --ups", 2), "--upstream");
}
