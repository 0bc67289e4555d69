//! The program as a command, and its output compared with golden files.

use std::io::{Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The audit lines, which were on stderr as well.
    pub(crate) audit: String,
}

/// Runs the program to its end.
pub(crate) fn idemptx(arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idemptx"));
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    ended(&command.output().unwrap())
}

/// Runs the program with these bytes on its standard input.
pub(crate) fn idemptx_fed(arguments: &[&str], input: &[u8]) -> Ended {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_idemptx"));
    command.args(arguments).env("NO_COLOR", "1").stdin(file);
    ended(&command.output().unwrap())
}

/// Runs the program to its end without blocking the runtime, on which an upstream may run.
pub(crate) async fn run(arguments: &[&str]) -> Ended {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let run = move || idemptx(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn ended(output: &Output) -> Ended {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let (audit, stderr) =
        stderr.split_inclusive('\n').partition(|line| line.contains("an operator decided about"));
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    Ended { code: output.status.code().unwrap(), stdout, stderr, audit }
}

impl Ended {
    /// Asserts that it succeeded and printed no error.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!((self.code, &*self.stderr), (0, ""), "{}", self.stdout);
        self
    }

    /// Asserts that the output matches a file under `tests/cli`, in which `[..]` stands for any
    /// text within a line; `IDEMPTX_ACCEPT` in the environment writes a missing file.
    #[track_caller]
    pub(crate) fn is(&self, file: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(file);
        let printed = format!("{}{}", self.stdout, self.stderr);
        if std::env::var_os("IDEMPTX_ACCEPT").is_some() && !path.exists() {
            std::fs::write(&path, &printed).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        let same = expected.lines().count() == printed.lines().count()
            && expected.lines().zip(printed.lines()).all(|(it, line)| fits(it, line));
        assert!(same, "expected by {file}:\n{expected}\nprinted:\n{printed}");
    }
}

fn fits(expected: &str, line: &str) -> bool {
    let Some((start, rest)) = expected.split_once("[..]") else { return expected == line };
    let Some(line) = line.strip_prefix(start) else { return false };
    line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| fits(rest, &line[at..]))
}
