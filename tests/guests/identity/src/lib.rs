//! Forwards every event.

use fluxmill_function::{Emit, Error, Event, function};

fn identity(event: Event, out: &mut Emit) -> Result<(), Error> {
    out.forward(&event);
    Ok(())
}
function!(identity);
