//! The machine: what it is, which core does what, and what processes take of it.

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The time that a process has for its end.
const END_MAX: Duration = Duration::from_secs(60);

/// The core of the code under measurement.
pub(crate) const MEASURED: usize = 0;
/// The core of the measuring side: clients and Redis.
pub(crate) const MEASURING: usize = 1;

/// Set while both have all cores.
static ARE_SHARED: AtomicBool = AtomicBool::new(false);

/// Describes the machine in one paragraph.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    let memory = line_of("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let redis = Command::new("redis-server").arg("--version").output();
    let redis = redis.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let redis = redis.unwrap_or_default();
    let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v="));
    format!(
        "{cores} cores ({model}), {memory} of memory, Linux {}, Redis {}; load {load} before the \
         run.",
        kernel.trim(),
        redis.unwrap_or("absent"),
    )
}

/// Processor time that this thread has had: what other programs take of the machine is not in it.
pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Lets the code under measurement and the measuring side have all cores, until it is dropped.
pub(crate) fn share_cores() -> SharedCores {
    ARE_SHARED.store(true, Ordering::Relaxed);
    SharedCores(())
}

/// Guard of a measurement on all cores.
pub(crate) struct SharedCores(());

impl Drop for SharedCores {
    fn drop(&mut self) {
        ARE_SHARED.store(false, Ordering::Relaxed);
    }
}

/// Number of threads of the code under measurement.
pub(crate) fn threads() -> usize {
    if are_shared() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 }
}

pub(crate) fn are_shared() -> bool {
    ARE_SHARED.load(Ordering::Relaxed)
}

/// Keeps this thread, and what it starts, on one core, unless cores are shared; without that core it
/// stays where it is.
pub(crate) fn stay_on(core: usize) {
    if !are_shared() {
        move_to(None, core);
    }
}

/// Keeps a process that has just started on one core.
pub(crate) fn keep_on(process: u32, core: usize) {
    move_to(i32::try_from(process).ok().and_then(Pid::from_raw), core);
}

/// Processor time that all threads of a process and of its children have had, in seconds.
pub(crate) fn cpu_seconds(process: u32) -> io::Result<f64> {
    let mut seconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?.path();
        let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
        seconds +=
            text.split(' ').next().and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|it| it.parse().ok()) {
            seconds += cpu_seconds(child)?;
        }
    }
    Ok(seconds)
}

/// Memory that this process has in use, in bytes.
pub(crate) fn resident_bytes() -> io::Result<f64> {
    resident_bytes_of(std::process::id())
}

/// Memory that a process has in use, in bytes.
pub(crate) fn resident_bytes_of(process: u32) -> io::Result<f64> {
    let text = line_of(&format!("/proc/{process}/status"), "VmRSS").unwrap_or_default();
    let kilobytes = text.split(' ').next().and_then(|it| it.parse::<f64>().ok());
    kilobytes.map(|it| it * 1024.0).ok_or_else(|| io::Error::other("no VmRSS"))
}

/// Asks a process to end, and kills it if it does not.
pub(crate) fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let is_asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let began = Instant::now();
    while is_asked && matches!(child.try_wait(), Ok(None)) && began.elapsed() < END_MAX {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(child.kill());
    drop(child.wait());
}

fn move_to(process: Option<Pid>, core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // Best effort: where it may not, or there is no such core, everything goes on unpinned.
    let _ = sched_setaffinity(process, &set);
}

fn line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
