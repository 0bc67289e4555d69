//! The output of `idemptx keys`, as text or JSON.

use std::io::{self, Write};
use std::time::Duration;

use idemptx::operator::{Page, PurgeReport, RecordSummary};
use idemptx_core::key::RecordId;
use serde_json::{Value, json};

use crate::config::Store;
use crate::observation::short_id;
use crate::operators::{OperatorAction, ShownRecord, view};

/// Writes to the standard output.
pub(super) struct OutputWriter {
    json: bool,
    out: io::Stdout,
}

impl OutputWriter {
    pub(super) fn new(json: bool) -> Self {
        Self { json, out: io::stdout() }
    }

    /// Prints a page, or the text for an empty one.
    pub(super) fn list(&mut self, page: &Page, empty: &str) -> io::Result<()> {
        if self.json {
            return self.document(&view::page(page));
        }
        if page.entries.is_empty() {
            writeln!(self.out, "{empty}")?;
        } else {
            writeln!(
                self.out,
                "{:8}  {:16}  {:>7}  {:>9}  {:>9}  {:>10}  REQUEST",
                "RECORD", "STATE", "ATTEMPT", "AGE", "LEASE", "EXPIRES IN"
            )?;
        }
        for summary in &page.entries {
            let lease = match summary.claim.remaining {
                Duration::ZERO => "-".to_owned(),
                remaining => span(remaining),
            };
            writeln!(
                self.out,
                "{}  {:16}  {:>7}  {:>9}  {:>9}  {:>10}  {}",
                short_id(&summary.id),
                summary.status,
                summary.claim.attempt,
                span(summary.age),
                lease,
                span(summary.expires_in),
                request(summary),
            )?;
        }
        for id in &page.unreadable {
            writeln!(self.out, "{id}  cannot be read by this version")?;
        }
        match &page.next {
            Some(next) => writeln!(self.out, "there is more: --after {next}"),
            None => Ok(()),
        }
    }

    /// Prints records, each as a line of JSON.
    pub(super) fn export(&mut self, page: &Page) -> io::Result<()> {
        for summary in &page.entries {
            writeln!(self.out, "{}", view::summary(summary))?;
        }
        for id in &page.unreadable {
            let record = short_id(id);
            let line = json!({ "id": id.to_string(), "record": record, "state": "unreadable" });
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    /// Prints a record; its response's headers and body only on request.
    pub(super) fn record(&mut self, record: &ShownRecord, with_body: bool) -> io::Result<()> {
        let ShownRecord { summary, view } = record;
        if self.json {
            let response = match (view, with_body) {
                (Some(view), true) => view::full_response(view),
                (Some(view), false) => view::response(view),
                (None, _) => None,
            };
            let mut document = view::summary(summary);
            if let Value::Object(members) = &mut document {
                members.insert("answer".to_owned(), response.unwrap_or_default());
            }
            return self.document(&document);
        }
        writeln!(self.out, "record        {}", short_id(&summary.id))?;
        writeln!(self.out, "id            {}", summary.id)?;
        if let Some(description) = summary.description() {
            writeln!(self.out, "request       {}", plain(&description.to_string()))?;
            for (name, part) in [("route", &description.route), ("upstream", &description.service)]
            {
                if !part.is_empty() {
                    writeln!(self.out, "{name:12}  {}", plain(part))?;
                }
            }
        }
        writeln!(self.out, "state         {}", summary.status)?;
        writeln!(self.out, "attempt       {}", summary.claim.attempt)?;
        writeln!(self.out, "claimed       {} ago", span(summary.age))?;
        writeln!(self.out, "last written  {} ago", span(summary.idle))?;
        if !summary.claim.remaining.is_zero() {
            writeln!(self.out, "lease left    {}", span(summary.claim.remaining))?;
        }
        writeln!(self.out, "expires in    {}", span(summary.expires_in))?;
        let Some(response) = view.as_ref().and_then(|view| view.response.as_ref()) else {
            return Ok(());
        };
        let (status, size) = (response.status.as_u16(), size(response.body.len() as u64));
        writeln!(self.out, "response      {status}, {size} of body")?;
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

/// Returns the request of a record, as far as it is known.
fn request(summary: &RecordSummary) -> String {
    let description = summary.description();
    description.map_or_else(|| "-".to_owned(), |it| plain(&it.to_string()))
}

/// Escapes what could move a terminal's cursor: a client has chosen it.
fn plain(text: &str) -> String {
    text.escape_debug().to_string()
}

/// Formats a duration in its largest unit.
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

/// Returns what to say where nothing is found: records of Redis are kept by prefix.
pub(super) fn prefix_hint(store: &Store) -> &'static str {
    let url = store.full_url();
    let is_redis = ["redis", "valkey", "unix:"].iter().any(|scheme| url.starts_with(scheme));
    match is_redis && !url.contains("prefix=") {
        true => PREFIX_HINT,
        false => "",
    }
}

const PREFIX_HINT: &str = "; the Python package's are under another prefix: add \
                           `?prefix=idempotency:` to the URL";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_formatted_in_its_largest_unit() {
        for (seconds, text) in
            [(0, "0 ms"), (59, "59 s"), (60, "1 min"), (7_200, "2 h"), (864_000, "10 d")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(
            (size(999), size(2_048), size(5 << 20)),
            ("999 B".into(), "2 KiB".into(), "5 MiB".into())
        );
    }
}
