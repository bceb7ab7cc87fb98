"""A request's life: taken in, sent to engines, tried again, answered, told of."""
