//! Errors as one line of text.

use std::error::Error;

/// Formats an error and its chain of causes as one line.
pub(crate) fn error_text(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", error_text(cause)),
        None => error.to_string(),
    }
}
