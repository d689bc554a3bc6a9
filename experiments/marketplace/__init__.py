"""The simulated marketplace: a grocery catalogue, shoppers, an auction and their click log."""
