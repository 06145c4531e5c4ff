//! What a function's author writes, and the one way from the component's export to it.

use crate::{Batch, Emit, Error, Event, Outcome};
#[cfg(target_arch = "wasm32")]
use crate::{EventBatch, FailureKind, bindings::BatchError};

/// A function's code: `fn(Event, &mut Emit) -> Result<(), Error>` for each event, or
/// `fn(Batch) -> Result<Outcome, Error>` for those who want columns. `Form` tells the compiler which of the two;
/// nobody writes it.
///
/// # Errors
/// An error of the first form is one event's; one of the second is the whole batch's.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no Fluxmill function",
    label = "wrong parameters or result",
    note = "for each event, write `fn name(event: Event, out: &mut Emit) -> Result<(), Error>`",
    note = "for whole batches, write `fn name(batch: Batch) -> Result<Outcome, Error>`"
)]
pub trait Handler<Form> {
    /// Runs the function over the batch.
    ///
    /// # Errors
    /// The batch failed as a whole.
    fn run(&self, batch: Batch) -> Result<Outcome, Error>;
}

/// The form of a [`Handler`] that is called for each event.
#[derive(Debug)]
pub enum EachEvent {}

/// The form of a [`Handler`] that is called for each batch.
#[derive(Debug)]
pub enum WholeBatch {}

impl<F> Handler<EachEvent> for F
where
    F: for<'b> Fn(Event<'b>, &mut Emit<'b>) -> Result<(), Error>,
{
    fn run(&self, batch: Batch) -> Result<Outcome, Error> {
        Ok(batch.each(self))
    }
}

impl<F> Handler<WholeBatch> for F
where
    F: Fn(Batch) -> Result<Outcome, Error>,
{
    fn run(&self, batch: Batch) -> Result<Outcome, Error> {
        self(batch)
    }
}

/// Makes a handler the component's function. Once in a crate of type `cdylib`.
///
/// ```
/// use fluxmill_function::{Emit, Error, Event, function};
///
/// fn hello(event: Event, out: &mut Emit) -> Result<(), Error> {
///     out.event_from(&event).value(format!("hello {}", event.text()?));
///     Ok(())
/// }
/// function!(hello);
/// ```
///
/// On targets other than WebAssembly it exports nothing and only checks the handler, so that a function's own tests
/// are ordinary tests.
#[macro_export]
macro_rules! function {
    ($handler:path) => {
        const _: () = $crate::__private::is_handler(&$handler);
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Function;
            impl $crate::bindings::Guest for Function {
                fn transform(
                    batch: $crate::EventBatch,
                ) -> ::core::result::Result<$crate::Outcome, $crate::bindings::BatchError> {
                    $crate::__private::call(&$handler, batch)
                }
            }
    $crate::bindings::export!(Function with_types_in $crate::bindings);
        };
    };
}

/// Compiles for handlers only.
pub const fn is_handler<Form, H: Handler<Form>>(_: &H) {}

/// The way from the component's export to the handler.
#[cfg(target_arch = "wasm32")]
pub fn call<Form>(handler: &impl Handler<Form>, batch: EventBatch) -> Result<Outcome, BatchError> {
    // Without this a panic leaves no word: a bare module has no stderr.
    std::panic::set_hook(Box::new(|panic| crate::log::write(crate::log::Level::Error, &panic.to_string(), &[])));
    handler.run(Batch::new(batch, crate::settings::Source::Host)).map_err(batch_error)
}

#[cfg(target_arch = "wasm32")]
fn batch_error(error: Error) -> BatchError {
    match error.kind() {
        FailureKind::Retry => BatchError::Retry(error.into_reason()),
        FailureKind::Reject => BatchError::Reject(error.into_reason()),
    }
}
