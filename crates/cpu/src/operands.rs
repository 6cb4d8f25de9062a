//! What the kernels that are no matrix products share: who runs them, their checks, and formats made into types.

use mantissa_numerics::Format;

use crate::elements::{Elements, ElementsMut};
use crate::isa::Tier;
use crate::pool::Pool;

/// Who runs a kernel. Neither choice changes a bit of the result.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The instruction set.
    pub tier: Tier,
    /// The threads.
    pub pool: &'a Pool,
}

/// Operands that do not fit together; nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperandError {
    /// A slice of another length than the shapes ask for.
    #[error("{operand}: wanted {wanted} values, got {got}")]
    Length {
        /// Which operand.
        operand: &'static str,
        /// Values wanted.
        wanted: usize,
        /// Values given.
        got: usize,
    },
    /// An operand in another format than the one that it goes with.
    #[error("{operand}: wanted {wanted}, got {got}")]
    Format {
        /// Which operand.
        operand: &'static str,
        /// Format wanted.
        wanted: Format,
        /// Format given.
        got: Format,
    },
    /// A number that another one limits.
    #[error("{operand}: {got}, but the limit is {limit}")]
    Limit {
        /// Which number.
        operand: &'static str,
        /// Its value.
        got: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// A page of the cache that two sequences of a batch write, or one for two of its parts.
    #[error("page {page} would be written twice; copy shared pages before writing them")]
    SharedPage {
        /// The page.
        page: u32,
    },
    /// Query heads that do not divide among the key and value heads, or no heads.
    #[error("{query} query heads of {dim} values cannot share {key_value} key and value heads")]
    Heads {
        /// Query heads.
        query: usize,
        /// Key and value heads.
        key_value: usize,
        /// Values per head.
        dim: usize,
    },
}

/// Demands a length.
pub(crate) fn check_length(operand: &'static str, wanted: usize, got: usize) -> Result<(), OperandError> {
    if wanted == got { Ok(()) } else { Err(OperandError::Length { operand, wanted, got }) }
}

/// Rows of a matrix of `len` values; an error where they are not whole.
pub(crate) fn rows_of(operand: &'static str, len: usize, width: usize) -> Result<usize, OperandError> {
    let rows = len.checked_div(width).unwrap_or(0);
    check_length(operand, rows * width, len)?;
    Ok(rows)
}

/// Demands that query heads divide among key and value heads.
pub(crate) fn check_heads(heads: mantissa_ops::op::Heads) -> Result<(), OperandError> {
    let mantissa_ops::op::Heads { query, key_value, dim } = heads;
    if query > 0 && key_value > 0 && dim > 0 && query.is_multiple_of(key_value) {
        return Ok(());
    }
    Err(OperandError::Heads { query, key_value, dim })
}

/// Rows that one task of an elementwise kernel takes: enough work to be worth a thread.
pub(crate) fn rows_per_task(width: usize) -> usize {
    const VALUES: usize = 1 << 14;
    (VALUES / width.max(1)).max(1)
}

/// Runs an expression with the slice inside an [`Elements`] or [`ElementsMut`], whatever its type.
macro_rules! typed {
    ($kind:ident, $elements:expr, $slice:ident => $body:expr) => {
        match $elements {
            $crate::elements::$kind::F32($slice) => $body,
            $crate::elements::$kind::F16($slice) => $body,
            $crate::elements::$kind::Bf16($slice) => $body,
        }
    };
}
pub(crate) use typed;

/// A slice of a known element type as [`Elements`], and back.
pub(crate) trait Storable: crate::simd::SimdElement {
    /// The values, if they are of this type.
    fn of<'a>(elements: &Elements<'a>) -> Option<&'a [Self]>;
    /// The values to write, if they are of this type.
    fn of_mut<'a>(elements: ElementsMut<'a>) -> Option<&'a mut [Self]>;
}

macro_rules! storable {
    ($($element:ty => $variant:ident),*) => {$(
        impl Storable for $element {
            fn of<'a>(elements: &Elements<'a>) -> Option<&'a [Self]> {
                match *elements {
                    Elements::$variant(values) => Some(values),
                    _ => None,
                }
            }

            fn of_mut<'a>(elements: ElementsMut<'a>) -> Option<&'a mut [Self]> {
                match elements {
                    ElementsMut::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    )*};
}
storable!(f32 => F32, half::f16 => F16, half::bf16 => Bf16);

/// The values as `T`s.
pub(crate) fn expect<'a, T: Storable>(
    operand: &'static str,
    elements: &Elements<'a>,
) -> Result<&'a [T], OperandError> {
    T::of(elements).ok_or(OperandError::Format { operand, wanted: T::FORMAT, got: elements.format() })
}

/// The values to write as `T`s.
pub(crate) fn expect_mut<'a, T: Storable>(
    operand: &'static str,
    elements: ElementsMut<'a>,
) -> Result<&'a mut [T], OperandError> {
    let got = elements.format();
    T::of_mut(elements).ok_or(OperandError::Format { operand, wanted: T::FORMAT, got })
}
