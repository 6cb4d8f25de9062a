//! Products by the matrix library, between kernels of our own.

use mantissa_numerics::Format;

use super::{Runner, StepError};
use crate::cublaslt::{Gemm, Operands};
use crate::families::library::{self, Finish, FinishArgs, GatherArgs};
use crate::families::products::{Epilogue, ProductArgs};
use crate::select::WeightProduct;
use crate::values::row_stride;

/// Rows in memory.
#[derive(Clone, Copy)]
struct Rows {
    address: u64,
    stride: usize,
}

impl Runner<'_> {
    /// A product by the library, for the arguments that a kernel of our own would take.
    pub(super) fn library_product(
        &self,
        product: WeightProduct,
        args: &ProductArgs,
        finish: Finish,
    ) -> Result<(), StepError> {
        let library = self.library.ok_or(StepError::Missing("matrix library"))?;
        let args = &self.gathered(product, args)?;
        let (out, format) = match finish {
            Finish::Direct => (Rows { address: args.out, stride: args.out_stride as usize }, result(product)),
            Finish::Sums => (self.sums(product), Format::F32),
        };
        let direct = finish == Finish::Direct;
        let addend = if direct { self.addend(args, format)? } else { None };
        let gemm = Gemm {
            operands: product.kind.activations,
            out: format,
            rows: args.rows as usize,
            features: product.features * product.kind.parts() as usize,
            columns: product.columns,
            weight_stride: args.weight_stride as usize,
            input_stride: args.input_stride as usize,
            addend_stride: if addend.is_some() { args.residual_stride as usize } else { out.stride },
            out_stride: out.stride,
        };
        let alpha = if direct { args.alpha } else { 1.0 };
        let operands = Operands { weights: args.weights, input: args.input, addend, out: out.address, alpha };
        self.target.ask("cublaslt", |stream| {
            // SAFETY: the addresses are those of the session's buffers, with the strides with which they were filled; rows
            // of all of them start at multiples of 16 bytes. The session has one stream, and synchronizes it before they go.
            unsafe { library.multiply(&gemm, &operands, &self.scratch.library, stream) }
        })?;
        if direct {
            return Ok(());
        }
        let finishing = FinishArgs { product: *args, sums: out.address, sum_stride: out.stride as u64 };
        let launch = library::finish_launch(args.rows as usize, product.features);
        self.launch(&library::finish_spec(product.kind), launch, &finishing)
    }

    /// Where the library reads what it adds, if anything: where 16-bit results take its place, in a copy. cuBLASLt 13.1 on
    /// an H200 rounds a product to 16 bits before it adds what lies in the result's place, and only then.
    fn addend(&self, args: &ProductArgs, format: Format) -> Result<Option<u64>, StepError> {
        if args.residual == 0 || args.residual != args.out || format == Format::F32 {
            return Ok((args.residual != 0).then_some(args.residual));
        }
        let bytes = args.rows as usize * args.residual_stride as usize * format.bytes();
        self.target.ask("copy of the residual", |stream| {
            // SAFETY: a value has memory for this many rows, and lives as long as the session.
            unsafe { stream.copy_from(args.residual, &self.scratch.floats, bytes) }
        })?;
        Ok(Some(self.scratch.floats.address()))
    }

    /// Where sums are kept that a kernel finishes.
    fn sums(&self, product: WeightProduct) -> Rows {
        let stride = row_stride(product.features * product.kind.parts() as usize, Format::F32);
        Rows { address: self.scratch.floats.address(), stride }
    }

    /// The arguments for an input that is the rows to multiply, one after the other.
    pub(super) fn gathered(
        &self,
        product: WeightProduct,
        args: &ProductArgs,
    ) -> Result<ProductArgs, StepError> {
        if args.wanted == 0 {
            return Ok(*args);
        }
        let out = self.scratch.activations.address();
        let packs = args.input_stride as usize * product.kind.activations.bytes() / 16;
        let gathering =
            GatherArgs { input: args.input, wanted: args.wanted, out, stride: packs as u32, unused: 0 };
        let launch = library::gather_launch(args.rows as usize, packs);
        self.launch(&library::gather_spec(), launch, &gathering)?;
        Ok(ProductArgs { input: out, wanted: 0, ..*args })
    }
}

/// The format in which a product's result is stored.
fn result(product: WeightProduct) -> Format {
    match product.kind.epilogue {
        Epilogue::Store | Epilogue::SwiGlu => product.kind.activations,
        Epilogue::Plain => Format::F32,
    }
}
