//! `idemptx`: see [`idemptx_gateway`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

// Each request makes many small allocations, and records in memory keep some of them.
// `no_thp`: allocating a huge page takes up to five milliseconds, which would stall every request
// of the worker thread.
#[global_allocator]
static MEMORY: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    idemptx_gateway::cli::main()
}
