"""Networks that look at generated pictures and take no part in any other training, with their own training."""
