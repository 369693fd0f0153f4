"""How much of `src` and of `guest_agent` the tests run: `scripts/test --coverage`."""
