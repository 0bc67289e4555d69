//! Child processes that end with the test.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, ExitStatus};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// A child process, killed when dropped.
#[derive(Debug)]
pub struct ChildProcess(Child);

impl ChildProcess {
    /// Starts a program; `missing` says how to install it.
    #[track_caller]
    pub fn spawn(command: &mut Command, missing: &str) -> Self {
        match command.spawn() {
            Ok(child) => Self(child),
            Err(error) => panic!("{}: {error}; {missing}", command.get_program().display()),
        }
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns the lines of its standard output, which must be piped and can be taken once.
    pub fn output_lines(&mut self) -> Lines<BufReader<ChildStdout>> {
        BufReader::new(self.0.stdout.take().unwrap()).lines()
    }

    /// Sends a signal; a process that has exited already ignores it.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.id(), signal);
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) -> ExitStatus {
        self.0.kill().unwrap();
        self.wait()
    }

    /// Waits until it exits.
    pub fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }

    /// Returns its exit status, if it has exited.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process, which may have exited meanwhile.
pub(crate) fn send_signal(process: u32, signal: Signal) {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).unwrap();
    let _ = kill_process(id, signal);
}
