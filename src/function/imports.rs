//! What a function may import: its settings, the log, and a closed WASI. Everything else is refused when it is loaded.

use std::path::Path;

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentType, InstancePre, Lift, Linker, WasmList, WasmStr};

use super::error::LoadError;
use super::journal::{Journal, capped};
use super::sandbox::State;
use super::wasi;

/// The contract's own interfaces, without their version.
const CONTRACT: &[&str] = &["fluxmill:function/settings", "fluxmill:function/log", "fluxmill:function/types"];
/// Fields of one log line; more are dropped.
const LOG_FIELDS_MAX: usize = 32;
/// Bytes of one log line's message, and of its fields together; more are cut off.
const LOG_LINE_MAX: usize = 4 * 1024;

/// `log.level`.
#[expect(dead_code, reason = "lifted by its number, never by name")]
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl Level {
    fn as_tracing(self) -> tracing::Level {
        match self {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        }
    }
}

/// Everything that is granted to every function.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::<State>::new(engine);
    wasi::add_to_linker(&mut linker)?;

    let mut settings = linker.instance("fluxmill:function/settings@0.1.0")?;
    settings.func_wrap("get", |store: StoreContextMut<'_, State>, (name,): (WasmStr,)| {
        let name = name.to_str(&store)?;
        Ok((store.data().settings().config.get(&*name).cloned(),))
    })?;
    settings.func_wrap("outputs", |store: StoreContextMut<'_, State>, (): ()| {
        Ok((store.data().settings().outputs.clone(),))
    })?;

    let mut log = linker.instance("fluxmill:function/log@0.1.0")?;
    log.func_wrap("write", write_log)?;
    Ok(linker)
}

type LogFields = WasmList<(WasmStr, WasmStr)>;

fn write_log(
    mut store: StoreContextMut<'_, State>,
    (level, message, fields): (Level, WasmStr, LogFields),
) -> wasmtime::Result<()> {
    let level = level.as_tracing();
    let journal: std::sync::Arc<Journal> = store.data().journal().clone();
    // Nothing is read from the sandbox for a line that nobody sees.
    if !journal.wants(level) {
        return Ok(());
    }
    let fields: Vec<_> = fields.iter(&mut store)?.take(LOG_FIELDS_MAX).collect::<Result<_, _>>()?;
    let mut text = String::new();
    for (name, value) in &fields {
        let separator = if text.is_empty() { "" } else { " " };
        text.push_str(separator);
        text.push_str(capped(&name.to_str(&store)?, LOG_LINE_MAX));
        text.push('=');
        text.push_str(capped(&value.to_str(&store)?, LOG_LINE_MAX));
        if text.len() > LOG_LINE_MAX {
            break;
        }
    }
    journal.write(level, capped(&message.to_str(&store)?, LOG_LINE_MAX), capped(&text, LOG_LINE_MAX));
    Ok(())
}

/// Checks every import of a component and links it.
///
/// # Errors
/// [`LoadError::ForeignImport`] for the first import that is not granted.
pub(super) fn link(
    linker: &Linker<State>,
    component: &Component,
    path: &Path,
) -> Result<InstancePre<State>, LoadError> {
    let refuse =
        |name: &str, remedy: String| LoadError::ForeignImport { path: path.to_owned(), name: name.to_owned(), remedy };
    let engine = linker.engine();
    for (name, import) in component.component_type().imports(engine) {
        // Interfaces that only name types ask for nothing.
        let asks = match &import.ty {
            ComponentItem::ComponentInstance(instance) => {
                instance.exports(engine).any(|(_, item)| !matches!(item.ty, ComponentItem::Type(_)))
            }
            ComponentItem::Type(_) => false,
            _ => true,
        };
        if asks && let Some(remedy) = remedy(name) {
            return Err(refuse(name, remedy));
        }
    }
    linker.instantiate_pre(component).map_err(|error| {
        // The interface is served, but not this function of it, or not with these types.
        let text = format!("{error:#}");
        let name = text.split('`').nth(1).unwrap_or("an interface").to_owned();
        refuse(&name, format!("it differs from the one that Fluxmill serves ({text}); rebuild with current tools"))
    })
}

/// Why an import is not granted, and what to do; `None` when it is.
fn remedy(import: &str) -> Option<String> {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    let package = interface.split('/').next().unwrap_or(interface);
    let text = match package {
        "fluxmill:function" if CONTRACT.contains(&interface) && version.starts_with("0.1.") => return None,
        "fluxmill:function" => {
            "this Fluxmill speaks fluxmill:function@0.1; rebuild the function with the SDK of this version"
        }
        _ if wasi::SERVED.contains(&interface) && version.starts_with("0.2.") => return None,
        _ if wasi::SERVED.contains(&interface) => "Fluxmill serves WASI 0.2; build for the target wasm32-wasip2",
        "wasi:sockets" | "wasi:http" | "wasi:tls" => {
            "functions get no network; remove the code (often a library) that opens connections"
        }
        "wasi_snapshot_preview1" => {
            "this is WASI preview 1; build for the target wasm32-wasip2, or wrap the module with its adapter"
        }
        _ => {
            "functions get their settings, the log, clocks, random numbers and standard output; \
             remove the code that needs it, or compose it into the component"
        }
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_closed_set_is_granted() {
        let granted = [
            "fluxmill:function/log@0.1.0",
            "fluxmill:function/settings@0.1.7",
            "wasi:cli/exit@0.2.3",
            "wasi:io/streams@0.2.0",
            "wasi:filesystem/types@0.2.6",
        ];
        for import in granted {
            assert_eq!(remedy(import), None, "{import}");
        }
        for (import, words) in [
            ("wasi:sockets/tcp@0.2.3", "no network"),
            ("wasi:http/outgoing-handler@0.2.0", "no network"),
            ("wasi:cli/exit@0.3.0", "WASI 0.2"),
            ("wasi:cli/exit", "WASI 0.2"),
            ("wasi:keyvalue/store@0.2.0", "remove the code"),
            ("fluxmill:function/log@0.2.0", "fluxmill:function@0.1"),
            ("fluxmill:function/secrets@0.1.0", "fluxmill:function@0.1"),
            ("wasi_snapshot_preview1", "preview 1"),
            ("anything", "remove the code"),
        ] {
            assert!(remedy(import).is_some_and(|text| text.contains(words)), "{import}");
        }
    }
}
