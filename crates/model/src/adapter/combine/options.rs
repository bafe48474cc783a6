//! What is asked of a combination, and what can be wrong with it.

use std::fmt;
use std::str::FromStr;

use crate::linalg;

/// How adapters are combined: PEFT's `combination_type`. With task tensors Xᵢ, weights wᵢ and scalings sᵢ:
///
/// * the `*Svd` kinds work on the updates Xᵢ = ΔWᵢ = sᵢBᵢAᵢ and cut the result X to a low rank again, B' = UΣ, A' = Vᵀ;
/// * the others (but `Cat`) work on the factors: A' from Aᵢ with weights sign(wᵢsᵢ)·√|wᵢsᵢ|, B' from Bᵢ with weights
///   √|wᵢsᵢ|. B'·A' then holds the cross terms BᵢAⱼ too, so **it is not Σ wᵢΔWᵢ** even without any pruning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combination {
    /// A' = \[w₁s₁A₁; w₂s₂A₂; …\], B' = \[B₁, B₂, …\]: exactly Σ wᵢΔWᵢ; the rank is the sum of the ranks.
    Cat,
    /// Σ wᵢXᵢ over the factors: cheap, and only exact for one adapter.
    Linear,
    /// Σ wᵢΔWᵢ cut to the rank: the best approximation of that rank (Eckart and Young).
    Svd,
    /// TIES (arXiv 2306.01708) over the factors: each Xᵢ keeps its `density` largest magnitudes; per element one sign is
    /// elected; the mean of wᵢXᵢ over those of that sign.
    Ties,
    /// TIES over the updates.
    TiesSvd,
    /// DARE (arXiv 2311.03099) over the factors: each element of Xᵢ is kept with probability `density` and divided by it,
    /// so that its expectation stays; then Σ wᵢXᵢ.
    DareLinear,
    /// DARE over the updates.
    DareLinearSvd,
    /// TIES over the factors with DARE's random drops in place of its trimming.
    DareTies,
    /// The same over the updates.
    DareTiesSvd,
    /// Each Xᵢ keeps its `density` largest magnitudes; then Σ wᵢXᵢ, over the factors.
    MagnitudePrune,
    /// The same over the updates.
    MagnitudePruneSvd,
}

/// What becomes of the elements of a task tensor before they are added up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pruning {
    Nothing,
    Magnitude,
    Random,
}

impl Combination {
    /// All of them.
    pub const ALL: [Combination; 11] = [
        Combination::Cat,
        Combination::Linear,
        Combination::Svd,
        Combination::Ties,
        Combination::TiesSvd,
        Combination::DareLinear,
        Combination::DareLinearSvd,
        Combination::DareTies,
        Combination::DareTiesSvd,
        Combination::MagnitudePrune,
        Combination::MagnitudePruneSvd,
    ];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            Combination::Cat => "cat",
            Combination::Linear => "linear",
            Combination::Svd => "svd",
            Combination::Ties => "ties",
            Combination::TiesSvd => "ties_svd",
            Combination::DareLinear => "dare_linear",
            Combination::DareLinearSvd => "dare_linear_svd",
            Combination::DareTies => "dare_ties",
            Combination::DareTiesSvd => "dare_ties_svd",
            Combination::MagnitudePrune => "magnitude_prune",
            Combination::MagnitudePruneSvd => "magnitude_prune_svd",
        }
    }

    /// Does it work on the updates and end in a singular value decomposition?
    pub fn is_svd(self) -> bool {
        self.name().ends_with("svd")
    }

    /// Does it drop elements, so that it needs a density?
    pub fn needs_density(self) -> bool {
        self.pruning() != Pruning::Nothing
    }

    /// Must all adapters have one rank?
    pub fn needs_equal_ranks(self) -> bool {
        self != Combination::Cat && !self.is_svd()
    }

    pub(super) fn pruning(self) -> Pruning {
        match self {
            Combination::Cat | Combination::Linear | Combination::Svd => Pruning::Nothing,
            Combination::DareLinear
            | Combination::DareLinearSvd
            | Combination::DareTies
            | Combination::DareTiesSvd => Pruning::Random,
            Combination::Ties
            | Combination::TiesSvd
            | Combination::MagnitudePrune
            | Combination::MagnitudePruneSvd => Pruning::Magnitude,
        }
    }

    pub(super) fn elects_signs(self) -> bool {
        self.name().contains("ties")
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Combination {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Combination::ALL.into_iter().find(|c| c.name() == s).ok_or_else(|| {
            let names: Vec<&str> = Combination::ALL.iter().map(|c| c.name()).collect();
            Error::option("combination", format!("'{s}' is unknown; there are {}", names.join(", ")))
        })
    }
}

/// How TIES elects the sign of an element: PEFT's `majority_sign_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MajoritySign {
    /// That of the sum of the (unweighted) values; plus if it is zero.
    #[default]
    Total,
    /// That of more values; plus if there are as many of each.
    Frequency,
}

impl MajoritySign {
    /// All of them.
    pub const ALL: [MajoritySign; 2] = [MajoritySign::Total, MajoritySign::Frequency];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            MajoritySign::Total => "total",
            MajoritySign::Frequency => "frequency",
        }
    }
}

impl fmt::Display for MajoritySign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MajoritySign {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        MajoritySign::ALL.into_iter().find(|m| m.name() == s).ok_or_else(|| {
            Error::option("majority_sign", format!("'{s}' is unknown; there are total, frequency"))
        })
    }
}

/// Options of a combination. One that has no effect on the chosen combination is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct CombineOptions {
    /// The kind.
    pub combination: Combination,
    /// The share of elements that are kept, in [0, 1] (above 0 for DARE); 1 prunes nothing.
    pub density: Option<f64>,
    /// For TIES.
    pub majority_sign: MajoritySign,
    /// Rank of the result of an `svd` kind; the largest rank of the adapters if not given.
    pub svd_rank: Option<usize>,
    /// For an `svd` kind: the entries of UΣ and Vᵀ are clamped to ± this quantile of them all, in [0, 1].
    pub svd_clamp: Option<f64>,
    /// For DARE's drops: equal seeds give equal bytes.
    pub seed: u64,
}

impl CombineOptions {
    /// A combination with PEFT's defaults: no density, rank or clamp.
    pub fn new(combination: Combination) -> CombineOptions {
        CombineOptions {
            combination,
            density: None,
            majority_sign: MajoritySign::Total,
            svd_rank: None,
            svd_clamp: None,
            seed: 0,
        }
    }

    /// # Errors
    /// If an option is missing, out of range, or without effect.
    pub(super) fn check(&self) -> Result<(), Error> {
        let kind = self.combination;
        let unused = |option| {
            Err(Error::option(option, format!("has no effect on the combination '{kind}'; leave it out")))
        };
        match self.density {
            None if kind.needs_density() => {
                return Err(Error::option(
                    "density",
                    format!("is missing: '{kind}' needs the share of elements to keep"),
                ));
            }
            Some(_) if !kind.needs_density() => return unused("density"),
            Some(d) if !(0.0..=1.0).contains(&d) => {
                return Err(Error::option("density", format!("is {d}; it must be in [0, 1]")));
            }
            Some(0.0) if kind.pruning() == Pruning::Random => {
                return Err(Error::option(
                    "density",
                    format!("is 0: '{kind}' divides by it; it must be above 0"),
                ));
            }
            _ => {}
        }
        match self.svd_rank {
            Some(_) if !kind.is_svd() => return unused("svd_rank"),
            Some(0) => return Err(Error::option("svd_rank", "is 0; it must be at least 1".into())),
            _ => {}
        }
        match self.svd_clamp {
            Some(_) if !kind.is_svd() => unused("svd_clamp"),
            Some(q) if !(0.0..=1.0).contains(&q) => {
                Err(Error::option("svd_clamp", format!("is {q}; it must be a quantile in [0, 1]")))
            }
            _ => Ok(()),
        }
    }
}

/// Why adapters can't be combined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option, named as PEFT names it.
    #[error("{option} {what}")]
    Option { option: &'static str, what: String },
    /// No adapter was given.
    #[error("there is no adapter to combine")]
    NoAdapter,
    /// One of the adapters.
    #[error("adapter '{adapter}' can't be combined: {what}")]
    Adapter { adapter: String, what: String },
    /// A tensor of one of the adapters.
    #[error("adapter '{adapter}' can't be combined: tensor '{tensor}' {what}")]
    Tensor { adapter: String, tensor: String, what: String },
    /// Two adapters that don't go together.
    #[error("adapters '{first}' and '{second}' can't be combined: {what}")]
    Pair { first: String, second: String, what: String },
    /// The result at one module.
    #[error("combining the adapters at '{module}' failed: {source}")]
    Decomposition { module: String, source: linalg::Error },
    /// The result at one module does not fit f32.
    #[error("combining the adapters at '{module}' gave numbers too large for f32: use smaller weights")]
    Overflow { module: String },
    /// The engine refused a shape.
    #[error(transparent)]
    Engine(#[from] loratune_engine::Error),
}

impl Error {
    pub(super) fn option(option: &'static str, what: String) -> Error {
        Error::Option { option, what }
    }
}

impl From<Error> for crate::Error {
    fn from(e: Error) -> Self {
        crate::Error::Invalid(e.to_string())
    }
}
