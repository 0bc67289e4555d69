//! Writes log lines to stderr without making a request wait for it.
//!
//! A full pipe, such as that of a slow journal, would otherwise block the threads that serve
//! requests. Lines that find the queue full are dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// The queue of lines, which a thread of its own empties.
#[derive(Clone, Debug)]
pub(crate) struct LogWriter {
    lines: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it was written.
    Flush(SyncSender<()>),
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    pub(super) fn start(output: impl Write + Send + 'static) -> Self {
        let (lines, queue) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        let spawned = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&queue, output, &counted));
        // Without the thread the queue is closed, and every line counts as dropped.
        drop(spawned);
        Self { lines, dropped }
    }

    /// Queues a line, which must end with a line feed.
    pub(crate) fn line(&self, line: Vec<u8>) {
        if self.lines.try_send(Entry::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Entry::Flush(done)).is_ok() {
            // A reader that takes nothing must not keep the process from its end.
            let _ = written.recv_timeout(FLUSH_MAX);
        }
    }
}

/// One event's line.
#[derive(Debug)]
pub(crate) struct EventLine<'a>(&'a LogWriter);

impl Write for EventLine<'_> {
    /// Takes a whole line, as tracing writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = EventLine<'a>;

    fn make_writer(&'a self) -> EventLine<'a> {
        EventLine(self)
    }
}

fn write_all(queue: &Receiver<Entry>, mut output: impl Write, dropped: &AtomicU64) {
    let mut reported = 0;
    while let Ok(entry) = queue.recv() {
        // Writing fails only if stderr is closed; then there is no place left to report it.
        let _ = match entry {
            Entry::Line(line) => output.write_all(&line),
            Entry::Flush(done) => {
                let flushed = output.flush();
                let _ = done.try_send(());
                flushed
            }
        };
        let now = dropped.load(Ordering::Relaxed);
        if now > reported {
            let _ =
                writeln!(output, "{} log lines were dropped: too slow a reader", now - reported);
            reported = now;
        }
    }
}

/// The writer of the process's log.
static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Returns the writer of stderr, which is started by the first call.
pub(crate) fn stderr() -> LogWriter {
    WRITER.get_or_init(|| LogWriter::start(io::stderr())).clone()
}

/// Waits a moment for lines that are queued; before the process ends.
pub(crate) fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush();
    }
}

/// Returns the number of lines that were dropped.
pub(crate) fn dropped() -> u64 {
    WRITER.get().map_or(0, |writer| writer.dropped.load(Ordering::Relaxed))
}

/// Some megabytes at most, as lines are short.
const LINES_MAX: usize = 16_384;
const FLUSH_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// A reader that takes lines only once it is told to.
    #[derive(Clone, Default)]
    struct SlowReader(Arc<Pipe>);

    #[derive(Default)]
    struct Pipe {
        taken: Mutex<Vec<u8>>,
        is_open: AtomicBool,
        opened: Condvar,
    }

    impl Write for SlowReader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let pipe = &*self.0;
            let is_shut = |_: &mut Vec<u8>| !pipe.is_open.load(Ordering::SeqCst);
            let mut taken = pipe.opened.wait_while(pipe.taken.lock().unwrap(), is_shut).unwrap();
            taken.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_costs_lines_and_no_time() {
        let reader = SlowReader::default();
        let writer = LogWriter::start(reader.clone());
        for number in 0..LINES_MAX + 100 {
            writer.line(format!("line {number}\n").into_bytes());
        }
        // One line may have been taken from the queue already.
        let dropped = writer.dropped.load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        {
            let _taken = reader.0.taken.lock().unwrap();
            reader.0.is_open.store(true, Ordering::SeqCst);
        }
        reader.0.opened.notify_all();
        let (done, written) = sync_channel(1);
        writer.lines.send(Entry::Flush(done)).unwrap();
        written.recv().unwrap();
        let text = String::from_utf8(reader.0.taken.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("line 0\n"), "{text}");
        assert!(text.contains(&format!("\n{dropped} log lines were dropped")), "{text}");
        assert!(text.contains(&format!("\nline {}\n", LINES_MAX - 1)), "{text}");
    }
}
