//! The Python package and the original one, each in a separate server process.

pub(crate) mod duplicates;
pub(crate) mod memory;
pub(crate) mod rates;
pub(crate) mod waking;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Measured;
use crate::server::Server;

/// The kind of layer in front of the handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    Plain,
    Decorator,
    Middleware,
    /// The middleware around the application as a whole.
    Wrapper,
    /// A middleware that answers everything itself, and does nothing for it.
    Ceiling,
    /// The original package of the same name.
    Original,
}

impl Front {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Decorator => "decorator",
            Self::Middleware => "middleware",
            Self::Wrapper => "wrapper",
            Self::Ceiling => "ceiling",
            Self::Original => "original",
        }
    }
}

/// The paths of Python and of the original package; `make bench` installs both.
#[derive(Debug)]
struct Python {
    interpreter: PathBuf,
    original: PathBuf,
}

impl Python {
    fn find() -> Measured<Self> {
        let path = |name: &str| {
            let value = env::var_os(name).map(PathBuf::from);
            value.ok_or_else(|| format!("{name} is not set: `make bench` prepares Python"))
        };
        Ok(Self { interpreter: path("BENCH_PYTHON")?, original: path("BENCH_ORIGINAL")? })
    }

    /// Starts a server with one worker.
    fn serve(
        &self,
        front: Front,
        store: &str,
        wait_ms: u64,
        core: Option<usize>,
    ) -> Measured<Server> {
        let mut command = self.command(front);
        command.args(["--store", store, "--wait-ms", &wait_ms.to_string()]);
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        Server::launch(command)
    }

    fn command(&self, front: Front) -> Command {
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/app.py");
        let mut command = Command::new(&self.interpreter);
        command.arg(app).args(["--front", front.name(), "--original"]).arg(&self.original);
        command
    }
}
