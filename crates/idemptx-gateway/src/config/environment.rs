//! Environment variables in a configuration: `${NAME}`.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::invalid_config::{InvalidConfig, SourceText};

/// Expands the variables in every string of a value.
pub(super) fn expand(
    value: &mut Spanned<DeValue<'_>>,
    source: SourceText<'_>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<(), InvalidConfig> {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains('$') => {
            *text = Cow::Owned(expanded(text, variable).map_err(|it| source.error_at(&span, it))?);
            Ok(())
        }
        DeValue::Array(items) => {
            items.iter_mut().try_for_each(|item| expand(item, source, variable))
        }
        DeValue::Table(table) => {
            table.iter_mut().try_for_each(|(_, item)| expand(item, source, variable))
        }
        _ => Ok(()),
    }
}

/// Expands the variables in a text; `$$` is a dollar sign.
///
/// # Errors
///
/// The reason, which names the variable but never contains its value.
pub(crate) fn expanded(
    text: &str,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        let (before, from) = rest.split_at(position);
        whole.push_str(before);
        let (piece, used) = piece(from, variable)?;
        whole.push_str(&piece);
        rest = from.get(used.end..).unwrap_or_default();
    }
    whole.push_str(rest);
    Ok(whole)
}

/// Expands the dollar sign at the beginning, and returns the range that it occupied.
fn piece(
    from: &str,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<(String, Range<usize>), String> {
    if from.starts_with("$$") {
        return Ok(("$".to_owned(), 0..2));
    }
    let Some(named) = from.strip_prefix("${") else { return Ok(("$".to_owned(), 0..1)) };
    let Some((name, _)) = named.split_once('}') else {
        return Err("`${` has no `}`; write `$$` for a dollar".to_owned());
    };
    let value =
        variable(name).ok_or_else(|| format!("the environment variable `{name}` is not set"))?;
    Ok((value, 0..name.len() + "${}".len()))
}
