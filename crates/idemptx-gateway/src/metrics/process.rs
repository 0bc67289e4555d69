//! Metrics of the process, by the names that Prometheus' client libraries agree on.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, SystemTime};

/// Returns what the system tells of this process, as OpenMetrics text; empty where it tells nothing.
pub(super) fn text(uptime: Duration) -> String {
    let mut text = String::new();
    let mut sample = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let _ =
            writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name}{suffix} {value}");
    };
    let cpu = "Time of the processor, in user and system mode, in seconds";
    sample("process_cpu_seconds", "counter", cpu, cpu_seconds());
    let memory = "Resident memory in bytes";
    sample("process_resident_memory_bytes", "gauge", memory, resident_bytes());
    sample("process_open_fds", "gauge", "Open file descriptors", open_descriptors());
    sample("process_max_fds", "gauge", "Limit of file descriptors", descriptors_max());
    let start = SystemTime::UNIX_EPOCH.elapsed().ok().and_then(|now| now.checked_sub(uptime));
    let began = "Start of the process, in seconds since 1970";
    sample("process_start_time_seconds", "gauge", began, start.map(|it| it.as_secs_f64()));
    text
}

/// proc(5), `/proc/pid/stat`: user and system time, which Linux counts in hundredths for programs.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in parentheses, and may contain some.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = |field: Option<&str>| field?.parse::<f64>().ok();
    Some((ticks(fields.next())? + ticks(fields.next())?) / 100.0)
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn open_descriptors() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn descriptors_max() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
