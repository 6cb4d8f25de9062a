//! Kernels as typed data: an embedded source file, an entry point, and the aliases that specialise it.
//!
//! The source that NVRTC sees is `prelude.cuh`, then the alias block, then the family's file. Distinct names give
//! distinct sources, and the same name always gives the same source.

use std::fmt;

use mantissa_numerics::Format;

/// The formats and conversions that every kernel starts with.
const PRELUDE: &str = include_str!("../kernels/prelude.cuh");

/// An embedded file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is the file of its name")]
pub enum SourceFile {
    AttentionDecode,
    AttentionDecodeMma,
    AttentionMerge,
    AttentionPrefill,
    AttentionPrefillMma,
    AttentionPrefillWgmma,
    Batch,
    Ceilings,
    Elementwise,
    Embedding,
    LibraryFinish,
    LibraryGather,
    Norm,
    NormEmbedding,
    NormRows,
    ProductFmaGemm,
    ProductFmaSmall,
    ProductMmaGemm,
    ProductMmaQkv,
    ProductMmaSmall,
    ProductWgmma,
    ProductWgmmaQkv,
    Qkv,
    Rope,
    Sampling,
    Sdpa,
    Selftest,
    SoftmaxBlock,
    SoftmaxVec,
    Token,
}

impl SourceFile {
    /// Every file.
    pub const ALL: [SourceFile; 30] = [
        SourceFile::AttentionDecode,
        SourceFile::AttentionDecodeMma,
        SourceFile::AttentionMerge,
        SourceFile::AttentionPrefill,
        SourceFile::AttentionPrefillMma,
        SourceFile::AttentionPrefillWgmma,
        SourceFile::Batch,
        SourceFile::Ceilings,
        SourceFile::Elementwise,
        SourceFile::Embedding,
        SourceFile::LibraryFinish,
        SourceFile::LibraryGather,
        SourceFile::Norm,
        SourceFile::NormEmbedding,
        SourceFile::NormRows,
        SourceFile::ProductFmaGemm,
        SourceFile::ProductFmaSmall,
        SourceFile::ProductMmaGemm,
        SourceFile::ProductMmaQkv,
        SourceFile::ProductMmaSmall,
        SourceFile::ProductWgmma,
        SourceFile::ProductWgmmaQkv,
        SourceFile::Qkv,
        SourceFile::Rope,
        SourceFile::Sampling,
        SourceFile::Sdpa,
        SourceFile::Selftest,
        SourceFile::SoftmaxBlock,
        SourceFile::SoftmaxVec,
        SourceFile::Token,
    ];

    /// The file's name without its extension.
    pub const fn name(self) -> &'static str {
        match self {
            SourceFile::AttentionDecode => "attention_decode",
            SourceFile::AttentionDecodeMma => "attention_decode_mma",
            SourceFile::AttentionMerge => "attention_merge",
            SourceFile::AttentionPrefill => "attention_prefill",
            SourceFile::AttentionPrefillMma => "attention_prefill_mma",
            SourceFile::AttentionPrefillWgmma => "attention_prefill_wgmma",
            SourceFile::Batch => "batch",
            SourceFile::Ceilings => "ceilings",
            SourceFile::Elementwise => "elementwise",
            SourceFile::Embedding => "embedding",
            SourceFile::LibraryFinish => "library_finish",
            SourceFile::LibraryGather => "library_gather",
            SourceFile::Norm => "norm",
            SourceFile::NormEmbedding => "norm_embedding",
            SourceFile::NormRows => "norm_rows",
            SourceFile::ProductFmaGemm => "product_fma_gemm",
            SourceFile::ProductFmaSmall => "product_fma_small",
            SourceFile::ProductMmaGemm => "product_mma_gemm",
            SourceFile::ProductMmaQkv => "product_mma_qkv",
            SourceFile::ProductMmaSmall => "product_mma_small",
            SourceFile::ProductWgmma => "product_wgmma",
            SourceFile::ProductWgmmaQkv => "product_wgmma_qkv",
            SourceFile::Qkv => "qkv",
            SourceFile::Rope => "rope",
            SourceFile::Sampling => "sampling",
            SourceFile::Sdpa => "sdpa",
            SourceFile::Selftest => "selftest",
            SourceFile::SoftmaxBlock => "softmax_block",
            SourceFile::SoftmaxVec => "softmax_vec",
            SourceFile::Token => "token",
        }
    }

    /// The file's text.
    pub const fn text(self) -> &'static str {
        match self {
            SourceFile::AttentionDecode => {
                concat!(include_str!("../kernels/cache.cuh"), include_str!("../kernels/attention_decode.cu"))
            }
            SourceFile::AttentionDecodeMma => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/attention_mma.cuh"),
                include_str!("../kernels/attention_span.cuh"),
                include_str!("../kernels/attention_decode_mma.cu")
            ),
            SourceFile::AttentionMerge => {
                concat!(include_str!("../kernels/cache.cuh"), include_str!("../kernels/attention_merge.cu"))
            }
            SourceFile::AttentionPrefill => {
                concat!(include_str!("../kernels/cache.cuh"), include_str!("../kernels/attention_prefill.cu"))
            }
            SourceFile::AttentionPrefillMma => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/attention_mma.cuh"),
                include_str!("../kernels/attention_rows.cuh"),
                include_str!("../kernels/attention_warpgroup.cuh"),
                include_str!("../kernels/attention_tile.cuh"),
                include_str!("../kernels/attention_prefill_mma.cu")
            ),
            SourceFile::AttentionPrefillWgmma => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/attention_mma.cuh"),
                include_str!("../kernels/attention_rows.cuh"),
                include_str!("../kernels/attention_warpgroup.cuh"),
                include_str!("../kernels/attention_prefill_wgmma.cu")
            ),
            SourceFile::Ceilings => {
                concat!(include_str!("../kernels/product_mma.cuh"), include_str!("../kernels/ceilings.cu"))
            }
            SourceFile::Batch => include_str!("../kernels/batch.cu"),
            SourceFile::Elementwise => include_str!("../kernels/elementwise.cu"),
            SourceFile::Embedding => include_str!("../kernels/embedding.cu"),
            SourceFile::LibraryFinish => {
                concat!(include_str!("../kernels/product.cuh"), include_str!("../kernels/library_finish.cu"))
            }
            SourceFile::LibraryGather => include_str!("../kernels/library_gather.cu"),
            SourceFile::Norm => include_str!("../kernels/norm.cu"),
            SourceFile::NormEmbedding => {
                concat!(
                    include_str!("../kernels/norm_rows_embedding.cuh"),
                    include_str!("../kernels/norm_rows.cu")
                )
            }
            SourceFile::NormRows => {
                concat!(
                    include_str!("../kernels/norm_rows_plain.cuh"),
                    include_str!("../kernels/norm_rows.cu")
                )
            }
            SourceFile::ProductFmaGemm => {
                concat!(
                    include_str!("../kernels/product.cuh"),
                    include_str!("../kernels/product_fma_gemm.cu")
                )
            }
            SourceFile::ProductFmaSmall => {
                concat!(
                    include_str!("../kernels/product.cuh"),
                    include_str!("../kernels/product_fma_small.cu")
                )
            }
            SourceFile::ProductMmaGemm => concat!(
                include_str!("../kernels/product.cuh"),
                include_str!("../kernels/product_mma.cuh"),
                include_str!("../kernels/product_mma_gemm.cu")
            ),
            SourceFile::ProductMmaQkv => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/product.cuh"),
                include_str!("../kernels/product_mma.cuh"),
                include_str!("../kernels/product_small_qkv.cuh"),
                include_str!("../kernels/product_mma_small.cu")
            ),
            SourceFile::ProductMmaSmall => concat!(
                include_str!("../kernels/product.cuh"),
                include_str!("../kernels/product_mma.cuh"),
                include_str!("../kernels/product_small_plain.cuh"),
                include_str!("../kernels/product_mma_small.cu")
            ),
            SourceFile::ProductWgmma => concat!(
                include_str!("../kernels/product.cuh"),
                include_str!("../kernels/product_mma.cuh"),
                include_str!("../kernels/product_wgmma.cuh"),
                include_str!("../kernels/product_wgmma_plain.cuh"),
                include_str!("../kernels/product_wgmma.cu")
            ),
            SourceFile::ProductWgmmaQkv => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/product.cuh"),
                include_str!("../kernels/product_mma.cuh"),
                include_str!("../kernels/product_wgmma.cuh"),
                include_str!("../kernels/product_wgmma_qkv.cuh"),
                include_str!("../kernels/product_wgmma.cu")
            ),
            SourceFile::Qkv => {
                concat!(include_str!("../kernels/cache.cuh"), include_str!("../kernels/qkv.cu"))
            }
            SourceFile::Rope => include_str!("../kernels/rope.cu"),
            SourceFile::Sampling => {
                concat!(
                    include_str!("../kernels/rank.cuh"),
                    include_str!("../kernels/sampling.cuh"),
                    include_str!("../kernels/sampling.cu")
                )
            }
            SourceFile::Sdpa => include_str!("../kernels/sdpa.cu"),
            SourceFile::Selftest => include_str!("../kernels/selftest.cu"),
            SourceFile::SoftmaxBlock => {
                concat!(include_str!("../kernels/softmax.cuh"), include_str!("../kernels/softmax_block.cu"))
            }
            SourceFile::Token => concat!(
                include_str!("../kernels/cache.cuh"),
                include_str!("../kernels/attention_mma.cuh"),
                include_str!("../kernels/attention_span.cuh"),
                include_str!("../kernels/rank.cuh"),
                include_str!("../kernels/token_args.cuh"),
                include_str!("../kernels/token_exchange.cuh"),
                include_str!("../kernels/token_ring.cuh"),
                include_str!("../kernels/token_span.cuh"),
                include_str!("../kernels/token_attention.cuh"),
                include_str!("../kernels/token_input.cuh"),
                include_str!("../kernels/token_chain.cuh"),
                include_str!("../kernels/token_finish.cuh"),
                include_str!("../kernels/token_product.cuh"),
                include_str!("../kernels/token.cu")
            ),
            SourceFile::SoftmaxVec => {
                concat!(include_str!("../kernels/softmax.cuh"), include_str!("../kernels/softmax_vec.cu"))
            }
        }
    }
}

/// What an alias stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AliasValue {
    /// `using NAME = format;`
    Format(Format),
    /// `constexpr int NAME = n;`
    Count(u32),
}

/// One line of the block that specialises a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alias {
    /// A C++ identifier.
    pub name: &'static str,
    /// What it stands for.
    pub value: AliasValue,
}

impl Alias {
    /// `using name = format;`
    pub const fn format(name: &'static str, format: Format) -> Alias {
        Alias { name, value: AliasValue::Format(format) }
    }

    /// `constexpr int name = count;`
    pub const fn count(name: &'static str, count: u32) -> Alias {
        Alias { name, value: AliasValue::Count(count) }
    }
}

/// A format's name in the prelude.
pub const fn device_type(format: Format) -> &'static str {
    match format {
        Format::F32 => "f32",
        Format::F16 => "f16",
        Format::Bf16 => "bf16",
        Format::F8E4M3 => "e4m3",
        Format::F8E5M2 => "e5m2",
        Format::F4E2M1 => "e2m1",
    }
}

/// A kernel: which function of which file, with which aliases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec {
    /// The file.
    pub file: SourceFile,
    /// The `extern "C" __global__` function.
    pub entry: &'static str,
    /// The aliases, in the order of the block.
    pub aliases: Vec<Alias>,
}

impl KernelSpec {
    /// The text that NVRTC compiles.
    pub fn source(&self) -> String {
        let mut text = String::with_capacity(PRELUDE.len() + self.file.text().len() + 256);
        text.push_str(PRELUDE);
        text.push('\n');
        for alias in &self.aliases {
            let line = match alias.value {
                AliasValue::Format(format) => format!("using {} = {};\n", alias.name, device_type(format)),
                AliasValue::Count(count) => format!("constexpr int {} = {count};\n", alias.name),
            };
            text.push_str(&line);
        }
        text.push_str(self.file.text());
        text
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}[", self.file.name(), self.entry)?;
        for (index, alias) in self.aliases.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match alias.value {
                AliasValue::Format(format) => write!(f, "{comma}{}={}", alias.name, format.name())?,
                AliasValue::Count(count) => write!(f, "{comma}{}={count}", alias.name)?,
            }
        }
        f.write_str("]")
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// Whether it has no blocks, and so nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(aliases: Vec<Alias>) -> KernelSpec {
        KernelSpec { file: SourceFile::Norm, entry: "rms_norm", aliases }
    }

    #[test]
    fn aliases_stand_between_prelude_and_kernel() {
        let spec = spec(vec![Alias::format("A", Format::Bf16), Alias::count("ROWS", 8)]);
        assert_eq!(spec.to_string(), "norm.rms_norm[A=bf16,ROWS=8]");
        let source = spec.source();
        assert!(source.starts_with(PRELUDE));
        assert!(source.ends_with(SourceFile::Norm.text()));
        assert!(source.contains("\nusing A = bf16;\nconstexpr int ROWS = 8;\n"));
    }

    #[test]
    fn every_kernel_lets_the_next_start_and_waits_for_those_before() {
        for file in SourceFile::ALL {
            let count = |text: &str| file.text().matches(text).count();
            let kernels = count("__global__");
            assert!(kernels > 0, "{}", file.name());
            assert_eq!(count("launch_dependents();"), kernels, "{}", file.name());
            assert!(count("wait_for_inputs();") >= kernels, "{}", file.name());
        }
    }

    #[test]
    fn different_kernels_have_different_names() {
        let formats = [Format::F32, Format::F16, Format::Bf16, Format::F8E4M3];
        let mut names = std::collections::BTreeSet::new();
        let mut count = 0;
        for file in SourceFile::ALL {
            for entry in ["a", "ab"] {
                for first in formats {
                    for rows in [1, 11] {
                        for second in ["B", "BROWS"] {
                            let aliases = vec![
                                Alias::format("A", first),
                                Alias::count(second, rows),
                                Alias::count("ROWS", 1),
                            ];
                            names.insert(KernelSpec { file, entry, aliases }.to_string());
                            count += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(names.len(), count);
    }
}
