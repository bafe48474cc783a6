//! Values that a backward pass needs: kept, or computed again from what is kept anyway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Tensor;
use crate::error::Result;

type Make = dyn Fn() -> Result<Tensor> + Send + Sync;

/// How a value is computed again. It is made for the first of its users in the backward pass, and goes with the last.
pub(crate) struct Recipe {
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
    pub fn new(make: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Arc<Recipe> {
        Arc::new(Recipe { make: Box::new(make), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An input that an op keeps for its backward.
pub(crate) enum Kept {
    Value(Tensor),
    Again(User),
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
    /// The value.
    ///
    /// # Errors
    /// If it can't be computed again.
    pub fn get(self) -> Result<Tensor> {
        let user = match self {
            Kept::Value(value) => return Ok(value),
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
        let recipe = Recipe::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Tensor::from_vec(vec![7f32], &[1])
        });
        let [a, b] = [(); 2].map(|()| Kept::Again(User::of(&recipe)));
        assert_eq!(a.get().unwrap().item(), 7.0);
        assert_eq!(b.get().unwrap().item(), 7.0);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        Kept::Again(User::of(&recipe)).get().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert!(recipe.state().made.is_none(), "nothing is held for nobody");
    }
}
