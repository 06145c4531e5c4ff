//! What a long run is told by the environment.

use anyhow::Context;

/// A number; none when the variable is not set.
///
/// # Errors
/// When it is no number.
pub(crate) fn setting<T: std::str::FromStr>(name: &str) -> anyhow::Result<Option<T>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    let text = text.to_string_lossy().into_owned();
    text.parse().map(Some).ok().with_context(|| format!("{name}={text} is no number"))
}
