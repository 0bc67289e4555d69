//! `idemptx`: see [`idemptx_gateway`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A request is many small pieces of memory, and a record in memory some that stay.
// Not from huge pages (`no_thp`): to be given one takes up to five milliseconds, for which every
// request of a worker waits.
#[global_allocator]
static MEMORY: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    idemptx_gateway::cli::main()
}
