"""What there is: searches and static archives, and how their items become scenes without duplicates."""
