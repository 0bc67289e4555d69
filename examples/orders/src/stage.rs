//! How the scene looks: in colour for a person, plain for a file.

use std::fmt::{self, Display};
use std::io::{IsTerminal, stdout};

/// Prints the scene, and remembers whether everything held that it claims.
#[derive(Debug)]
pub(crate) struct Stage {
    colour: bool,
    steps: u32,
    failures: u32,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, steps: 0, failures: 0 }
    }

    /// Everything that was claimed held.
    pub(crate) fn held(&self) -> bool {
        self.failures == 0
    }

    pub(crate) fn title(&self, text: impl Display) {
        println!("\n{}", self.paint(BOLD, text));
    }

    pub(crate) fn line(&self, text: impl Display) {
        println!("{text}");
    }

    pub(crate) fn step(&mut self, text: &str) {
        self.steps += 1;
        println!("\n{}  {}", self.paint(BOLD, self.steps), self.paint(BOLD, text));
    }

    pub(crate) fn request(&self, text: impl Display) {
        println!("   {} {text}", self.paint(CYAN, '>'));
    }

    pub(crate) fn answer(&self, text: impl Display) {
        println!("   {} {text}", self.paint(CYAN, '<'));
    }

    /// Claims something about what was just shown, and says why it is so.
    pub(crate) fn claim(&mut self, holds: bool, fact: impl Display, why: &str) {
        if holds {
            println!("   {} {fact}", self.paint(GREEN, "ok"));
            println!("   {}", self.paint(DIM, why));
        } else {
            self.failures += 1;
            println!("   {} {fact}", self.paint(RED, "NOT SO:"));
        }
    }

    fn paint<T: Display>(&self, code: &'static str, text: T) -> Painted<T> {
        Painted { code: self.colour.then_some(code), text }
    }
}

struct Painted<T> {
    code: Option<&'static str>,
    text: T,
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "\x1b[{code}m{}\x1b[0m", self.text),
            None => self.text.fmt(f),
        }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "32";
const CYAN: &str = "36";
