"""Python imports this at the start of every process that has this folder on its path: a job's driver, Ray's workers."""

from tests.chaos.failpoints import install, orders_from_environment

for order in orders_from_environment():
    install(order)
