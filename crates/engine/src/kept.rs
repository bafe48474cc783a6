//! Values that a backward pass needs: kept, or computed again from what is kept anyway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cuda::Away;
use crate::error::Result;
use crate::ops::Activation;
use crate::{FrozenWeight, Tensor};

type Make = dyn Fn() -> Result<Tensor> + Send + Sync;

/// What a value on a card is made of, for kernels that make it themselves while they read it once.
pub(crate) enum Parts {
    /// x·rstd·(offset + w), rstd by row.
    Normed { x: Tensor, rstd: Tensor, weight: Arc<FrozenWeight>, offset: f64 },
    /// activation(gate)·up
    Gated { gate: Tensor, up: Tensor, activation: Activation },
}

/// How a value is computed again. It is made for the first of its users in the backward pass, and goes with the last.
pub(crate) struct Recipe {
    parts: Option<Parts>,
    make: Box<Make>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    made: Option<Tensor>,
    users: usize,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

impl Recipe {
    pub fn new(
        parts: Option<Parts>,
        make: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
    ) -> Arc<Recipe> {
        Arc::new(Recipe { parts, make: Box::new(make), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An input that an op keeps for its backward.
pub(crate) enum Kept {
    Value(Tensor),
    Again(User),
    /// In the host's memory, of this shape.
    Away(Arc<Away>, Vec<usize>),
}

/// One user of a recipe.
pub(crate) struct User(Arc<Recipe>);

impl User {
    pub fn of(recipe: &Arc<Recipe>) -> User {
        recipe.state().users += 1;
        User(recipe.clone())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.users -= 1;
        if state.users == 0 {
            state.made = None;
        }
    }
}

impl Kept {
    /// Moves a value on a card to the host's memory; others stay where they are.
    ///
    /// # Errors
    /// If the host has no memory left for it.
    pub fn send_away(self) -> Result<Kept> {
        let Kept::Value(value) = &self else { return Ok(self) };
        match value.cuda() {
            Some(there) if there.device().plans_processor() => Ok(self),
            Some(there) => Ok(Kept::Away(there.device().send_away(there)?, value.shape().to_vec())),
            None => Ok(self),
        }
    }

    /// What the value is made of, if kernels know that and it is not there already.
    pub fn parts(&self) -> Option<&Parts> {
        match self {
            Kept::Again(user) if user.0.state().made.is_none() => user.0.parts.as_ref(),
            _ => None,
        }
    }

    /// Whether both are of one value.
    pub fn is_same(&self, other: &Kept) -> bool {
        match (self, other) {
            (Kept::Again(a), Kept::Again(b)) => Arc::ptr_eq(&a.0, &b.0),
            (Kept::Value(a), Kept::Value(b)) => match (a.cuda(), b.cuda()) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                _ => false,
            },
            _ => false,
        }
    }

    /// The value; computed again it lives as long as this or another user.
    ///
    /// # Errors
    /// If it can't be computed again.
    pub fn get(&self) -> Result<Tensor> {
        let user = match self {
            Kept::Value(value) => return Ok(value.clone()),
            Kept::Away(away, shape) => return Ok(Tensor::on_cuda(away.get()?, shape)),
            Kept::Again(user) => user,
        };
        let mut state = user.0.state();
        if let Some(made) = &state.made {
            return Ok(made.clone());
        }
        let made = (user.0.make)()?;
        state.made = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_recipe_is_followed_once_for_all_users_and_again_after_the_last() {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let recipe = Recipe::new(None, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Tensor::from_vec(vec![7f32], &[1])
        });
        let [a, b] = [(); 2].map(|()| Kept::Again(User::of(&recipe)));
        assert_eq!(a.get().unwrap().item(), 7.0);
        drop(a);
        assert_eq!(b.get().unwrap().item(), 7.0);
        drop(b);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        Kept::Again(User::of(&recipe)).get().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert!(recipe.state().made.is_none(), "nothing is held for nobody");
    }
}
