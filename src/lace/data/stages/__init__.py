"""The stages of `lace data`: each an async function from an item to an item, or to a rejection with a reason."""
