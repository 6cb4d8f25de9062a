//! The suite holds for the reference itself.

use mantissa_ops::ReferenceBackend;
use mantissa_ops::reference::Rounding;

mantissa_ops::conformance!(ReferenceBackend::new(Rounding::AsContract));
