//! The list of cases that every broker must pass. Each looks at what the source and the sink do, and at what the broker
//! itself says was stored and is confirmed.

#[path = "content.rs"]
mod content;
#[path = "ends.rs"]
mod ends;
#[path = "flow.rs"]
mod flow;
#[path = "outages.rs"]
mod outages;

use crate::stage::Stage;
use crate::world::Needs;

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct ConformanceCase {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Stage<'_>) -> anyhow::Result<()>,
}

const fn case(name: &'static str, run: fn(&Stage<'_>) -> anyhow::Result<()>) -> ConformanceCase {
    ConformanceCase { name, needs: Needs::Nothing, run }
}

/// All of them.
pub(crate) const CASES: &[ConformanceCase] = &[
    case("delivery", flow::delivery),
    case("batching", flow::batching),
    case("order", flow::order),
    case("back_pressure", flow::back_pressure),
    case("redelivery", ends::redelivery),
    case("out_of_order", ends::out_of_order),
    case("restart", ends::restart),
    case("take_over", ends::take_over),
    case("drain", ends::drain),
    case("slow_function", ends::slow_function),
    case("content", content::content),
    case("too_large", content::too_large),
    ConformanceCase { name: "denied", needs: Needs::Denial, run: outages::denied },
    ConformanceCase { name: "reconnect", needs: Needs::Outage, run: outages::reconnect },
];
