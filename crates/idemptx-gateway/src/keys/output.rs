//! What `idemptx keys` prints: for people, or as JSON.

use std::io::{self, Write};
use std::time::Duration;

use idemptx::operator::{Cursor, PurgeReport, RecordSummary, RecordView};
use idemptx_core::key::RecordId;
use serde_json::{Value, json};

use crate::admin::actions::OperatorAction;
use crate::admin::view;

/// Writes to the standard output.
pub(super) struct OutputWriter {
    json: bool,
    out: io::Stdout,
}

impl OutputWriter {
    pub(super) fn new(json: bool) -> Self {
        Self { json, out: io::stdout() }
    }

    pub(super) fn list(
        &mut self,
        entries: &[RecordSummary],
        unreadable: &[RecordId],
        next: Option<&Cursor>,
    ) -> io::Result<()> {
        if self.json {
            return self.document(&json!({
                "records": entries.iter().map(view::summary).collect::<Vec<_>>(),
                "unreadable": unreadable.iter().map(RecordId::to_string).collect::<Vec<_>>(),
                "next": next.map(Cursor::as_str),
            }));
        }
        if entries.is_empty() {
            writeln!(self.out, "no records")?;
        } else {
            let line = "RECORD".to_owned();
            writeln!(
                self.out,
                "{line:65}  {:11}  {:>7}  {:>9}  {:>9}  {:>12}",
                "STATE", "ATTEMPT", "AGE", "LEASE", "FORGOTTEN IN"
            )?;
        }
        for entry in entries {
            let lease = match entry.claim.remaining {
                Duration::ZERO => "-".to_owned(),
                remaining => span(remaining),
            };
            writeln!(
                self.out,
                "{}  {:11}  {:>7}  {:>9}  {:>9}  {:>12}",
                entry.id,
                entry.status,
                entry.claim.attempt,
                span(entry.age),
                lease,
                span(entry.expires_in)
            )?;
        }
        for id in unreadable {
            writeln!(self.out, "{id}  cannot be read by this version")?;
        }
        match next {
            Some(next) => writeln!(self.out, "there is more: --after {next}"),
            None => Ok(()),
        }
    }

    /// One record; of its response the headers' values and the body only if they are asked for.
    pub(super) fn record(
        &mut self,
        entry: &RecordSummary,
        record_view: &RecordView,
        with_body: bool,
    ) -> io::Result<()> {
        if self.json {
            let mut record = view::summary(entry);
            if let Value::Object(members) = &mut record {
                members.insert("answer".to_owned(), answer(record_view, with_body));
            }
            return self.document(&record);
        }
        writeln!(self.out, "record        {}", entry.id)?;
        writeln!(self.out, "state         {}", entry.status)?;
        writeln!(self.out, "attempt       {}", entry.claim.attempt)?;
        writeln!(self.out, "claimed       {} ago", span(entry.age))?;
        writeln!(self.out, "last written  {} ago", span(entry.idle))?;
        if !entry.claim.remaining.is_zero() {
            writeln!(self.out, "lease left    {}", span(entry.claim.remaining))?;
        }
        writeln!(self.out, "forgotten in  {}", span(entry.expires_in))?;
        let Some(response) = &record_view.response else { return Ok(()) };
        let (status, size) = (response.status.as_u16(), size(response.body.len() as u64));
        writeln!(self.out, "answer        {status}, {size} of body")?;
        if with_body {
            writeln!(self.out)?;
            for (name, value) in &response.headers {
                let value = String::from_utf8_lossy(value.as_bytes());
                writeln!(self.out, "{name}: {}", value.escape_debug())?;
            }
            writeln!(self.out)?;
            self.out.write_all(&response.body)?;
            writeln!(self.out)?;
        }
        Ok(())
    }

    pub(super) fn done(&mut self, id: &RecordId, action: OperatorAction) -> io::Result<()> {
        match self.json {
            true => {
                let action = action.as_str();
                self.document(&json!({ "id": id.to_string(), "action": action, "done": true }))
            }
            false => writeln!(self.out, "{}", action.done()),
        }
    }

    pub(super) fn purged(&mut self, report: &PurgeReport, was_done: bool) -> io::Result<()> {
        if self.json {
            return self.document(&json!({
                "done": was_done,
                "forgotten": report.forgotten,
                "payload_bytes": report.payload_bytes,
                "in_flight": report.in_flight,
                "changed": report.changed,
                "unreadable": report.unreadable,
            }));
        }
        let (count, size) = (report.forgotten, size(report.payload_bytes));
        let records = if count == 1 { "record" } else { "records" };
        match was_done {
            true => writeln!(self.out, "forgot {count} {records} with {size} of responses")?,
            false => writeln!(
                self.out,
                "would forget {count} {records} with {size} of responses; a retry of such a \
                 request executes again\nadd --yes to do it"
            )?,
        }
        for (count, why) in [
            (report.in_flight, "in flight"),
            (report.changed, "changed meanwhile"),
            (report.unreadable, "cannot be read by this version"),
        ] {
            if count > 0 {
                writeln!(self.out, "left alone: {count}, {why}")?;
            }
        }
        Ok(())
    }

    fn document(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value:#}")
    }
}

/// What is kept of an answer: its status and size, and the rest if it is asked for.
fn answer(record_view: &RecordView, with_body: bool) -> Value {
    let mut answer = view::answer(record_view).unwrap_or_default();
    if let (Value::Object(members), Some(response), true) =
        (&mut answer, &record_view.response, with_body)
    {
        let lines = response
            .headers
            .iter()
            .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
        members.insert("headers".to_owned(), lines.collect());
        let body = match std::str::from_utf8(&response.body) {
            Ok(text) => text.into(),
            Err(_) => json!({ "hex": view::hex(&response.body) }),
        };
        members.insert("body".to_owned(), body);
    }
    answer
}

/// A time as people say it.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_said_in_its_largest_unit() {
        for (seconds, said) in
            [(0, "0 ms"), (59, "59 s"), (60, "1 min"), (7_200, "2 h"), (864_000, "10 d")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), said);
        }
        assert_eq!(
            (size(999), size(2_048), size(5 << 20)),
            ("999 B".into(), "2 KiB".into(), "5 MiB".into())
        );
    }
}
