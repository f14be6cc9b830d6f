"""Type checks at run time for our packages, and the models that tests share."""

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook finds the checker by its dotted name)

# before the first import of what it checks
install_import_hook(["specdec", "drafters", "verifiers"], "tests.typecheck.check")
