//! Values that many share, each kept once.

/// Values known by a number. A number stays with its value as long as anyone uses it.
#[derive(Debug, Clone)]
pub(crate) struct Interned<T> {
    items: Vec<Option<Item<T>>>,
    /// The numbers in use, in the order of their values.
    sorted: Vec<u32>,
    free: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Item<T> {
    value: T,
    users: u32,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { items: Vec::new(), sorted: Vec::new(), free: Vec::new() }
    }
}

impl<T: Ord> Interned<T> {
    /// Values in rising order, each with the number of its users.
    pub(crate) fn from_sorted(values: impl Iterator<Item = (T, u32)>) -> Self {
        let items: Vec<_> = values.map(|(value, users)| Some(Item { value, users })).collect();
        Self { sorted: (0..items.len() as u32).collect(), items, free: Vec::new() }
    }

    /// The number of a value, which has one user more.
    pub(crate) fn take(&mut self, value: T) -> u32 {
        let found = self.sorted.binary_search_by(|number| self.value(*number).cmp(&Some(&value)));
        match found {
            Ok(index) => {
                let number = self.sorted.get(index).copied().unwrap_or_default();
                if let Some(Some(item)) = self.items.get_mut(number as usize) {
                    item.users += 1;
                }
                number
            }
            Err(index) => {
                let item = Some(Item { value, users: 1 });
                let number = match self.free.pop() {
                    Some(number) => {
                        if let Some(place) = self.items.get_mut(number as usize) {
                            *place = item;
                        }
                        number
                    }
                    None => {
                        self.items.reserve_exact(usize::from(self.items.is_empty()));
                        self.items.push(item);
                        (self.items.len() - 1) as u32
                    }
                };
                self.sorted.reserve_exact(usize::from(self.sorted.is_empty()));
                self.sorted.insert(index, number);
                number
            }
        }
    }

    /// The values of these numbers have one user less, each as often as it stands there. Those that nobody uses any more go
    /// together: their order is gone through once.
    pub(crate) fn release(&mut self, numbers: impl IntoIterator<Item = u32>) {
        let free_before = self.free.len();
        for number in numbers {
            let Some(place) = self.items.get_mut(number as usize) else { continue };
            let Some(item) = place else { continue };
            item.users -= 1;
            if item.users == 0 {
                *place = None;
                self.free.push(number);
            }
        }
        if self.free.len() > free_before {
            let items = &self.items;
            self.sorted.retain(|number| items.get(*number as usize).is_some_and(Option::is_some));
        }
    }

    /// The value of a number.
    pub(crate) fn value(&self, number: u32) -> Option<&T> {
        self.items.get(number as usize)?.as_ref().map(|item| &item.value)
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// All values in their order, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.sorted.iter().filter_map(|number| self.value(*number).map(|value| (*number, value)))
    }

    /// Bytes of memory beside those that the values hold themselves.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.items.capacity() * size_of::<Option<Item<T>>>()
            + (self.sorted.capacity() + self.free.capacity()) * size_of::<u32>()
    }
}
