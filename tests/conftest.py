"""Type checks at run time for our packages, and the models that tests share."""

from jaxtyping import install_import_hook

# before the first import of what it checks
install_import_hook(["specdec", "drafters", "verifiers"], "tests.typecheck.check")
