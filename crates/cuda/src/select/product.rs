//! Which kernels serve a product with a weight, for every number of rows: our own, or a library's.

use mantissa_ops::{Program, WeightId};

use super::{Chooser, Formats};
use crate::families::library::{self, Bias, Finish};
use crate::families::products::{self, Epilogue, Product, Shape, SmallMatrix, Variant, VariantPreference};
use crate::families::wgmma;
use crate::kernel::{KernelSpec, Launch};

/// A product with one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightProduct {
    pub kind: Product,
    pub features: usize,
    pub columns: usize,
    pub bias: Bias,
}

/// Who computes a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// A kernel of our own.
    Own(KernelSpec, Launch),
    /// A kernel of our own whose arguments describe matrices for this tile.
    Wgmma(wgmma::Tile, KernelSpec, Launch),
    /// A library, whose result becomes the product's as said.
    Library(Finish),
}

impl Formats {
    /// The product with a weight of a program.
    pub fn product(
        self,
        program: &Program,
        weight: WeightId,
        epilogue: Epilogue,
        bias: Option<WeightId>,
    ) -> WeightProduct {
        let spec = program.weight(weight);
        let Formats { weights, activations, .. } = self;
        let kind = Product { weights, activations, epilogue };
        WeightProduct {
            kind,
            features: spec.rows / kind.parts() as usize,
            columns: spec.columns,
            bias: bias.map_or(Bias::None, |_| Bias::Added),
        }
    }
}

impl WeightProduct {
    fn shape(self, rows: usize) -> Shape {
        Shape { rows, features: self.features, columns: self.columns }
    }

    fn variant(self, rows: usize, chooser: &Chooser) -> Variant {
        products::choose(self.kind, self.shape(rows), chooser.device, chooser.preferences)
    }

    /// Who computes it for a number of rows, and how.
    pub fn server(self, rows: usize, chooser: &Chooser) -> Server {
        if library::serves_rows(self.kind, rows, chooser.preferences) {
            return Server::Library(library::finish(self.kind.epilogue, self.bias));
        }
        let variant = self.variant(rows, chooser);
        let spec = products::spec(self.kind, variant, self.columns);
        let launch = products::launch_shape(self.kind, variant, self.shape(rows), chooser.device);
        match variant {
            Variant::Wgmma(tile) => Server::Wgmma(tile, spec, launch),
            Variant::SmallMatrix(_) | Variant::SmallFma { .. } | Variant::Gemm { .. } => {
                Server::Own(spec, launch)
            }
        }
    }

    /// Whether the library computes it for some number of rows up to `most`.
    pub fn needs_library(self, most: usize, chooser: &Chooser) -> bool {
        library::serves_rows(self.kind, most, chooser.preferences)
    }

    /// Whether what computes it for some number of rows up to `most` takes all rows of an input in their order.
    pub fn takes_all_rows(self, most: usize, chooser: &Chooser) -> bool {
        self.needs_library(most, chooser) || matches!(self.variant(most, chooser), Variant::Wgmma(_))
    }

    /// Our kernels for all numbers of rows up to `most`.
    pub fn kernels(self, most: usize, chooser: &Chooser) -> Vec<KernelSpec> {
        let by_library = |rows: &usize| library::serves_rows(self.kind, *rows, chooser.preferences);
        // A library that serves a number of rows serves all larger ones.
        let own = (1..=most).find(by_library).map_or(most, |first| first - 1);
        let variants = products::variants(self.kind, self.shape(own), chooser.device, chooser.preferences);
        let mut all: Vec<KernelSpec> =
            variants.into_iter().map(|variant| products::spec(self.kind, variant, self.columns)).collect();
        if self.needs_library(most, chooser) && library::finish(self.kind.epilogue, self.bias) == Finish::Sums
        {
            all.push(library::finish_spec(self.kind));
        }
        all
    }

    /// The names of what computes it.
    pub fn name(self, rows: usize, chooser: &Chooser) -> String {
        match self.server(rows, chooser) {
            Server::Own(spec, _) | Server::Wgmma(_, spec, _) => spec.to_string(),
            Server::Library(Finish::Direct) => LIBRARY.to_owned(),
            Server::Library(Finish::Sums) => format!("{LIBRARY} + {}", library::finish_spec(self.kind)),
        }
    }

    /// What decided it.
    pub fn why(self, rows: usize, chooser: &Chooser) -> String {
        let preferences = chooser.preferences;
        match (self.server(rows, chooser), preferences.variant) {
            (Server::Library(_), VariantPreference::Gemm) => {
                "asked for by the preferred backend and variant".to_owned()
            }
            (Server::Library(_), _) => {
                format!(
                    "asked for by the preferred backend: {rows} rows, more than {}",
                    library::most_of_ours(preferences)
                )
            }
            (Server::Own(..) | Server::Wgmma(..), VariantPreference::SmallN | VariantPreference::Gemm) => {
                "asked for by the preferred variant".to_owned()
            }
            (Server::Own(..) | Server::Wgmma(..), VariantPreference::Auto) => self.why_variant(rows, chooser),
        }
    }

    fn why_variant(self, rows: usize, chooser: &Chooser) -> String {
        match self.variant(rows, chooser) {
            Variant::SmallMatrix(SmallMatrix { bucket, .. }) | Variant::SmallFma { bucket, .. } => {
                format!("{rows} rows: weights stream once for up to {} of them", bucket.rows())
            }
            Variant::Gemm { tile, .. } => format!("{rows} rows: tiles of {tile} by {tile} reuse each weight"),
            Variant::Wgmma(tile) => tiles_reuse(rows, tile),
        }
    }
}

/// Why a tile was chosen.
pub(super) fn tiles_reuse(rows: usize, tile: wgmma::Tile) -> String {
    format!("{rows} rows: tiles of {} by {} reuse each weight", tile.rows(), tile.weight_rows)
}

/// The library's name in plans.
const LIBRARY: &str = "cublaslt";
