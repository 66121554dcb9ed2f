"""What several solvers share: weights, histories, step sizes and refusals."""
