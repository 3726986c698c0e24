"""One loader per data set. Loaders return Arrow tables in the long form of the outcome contract."""
