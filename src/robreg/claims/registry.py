"""The list of all claims that are judged; each is defined in one of the modules imported here."""

from robreg.claims.confidence import CONFIDENCE
from robreg.claims.generalisation import GENERALISATION
from robreg.claims.smoothing import SMOOTHING

CLAIMS = GENERALISATION + CONFIDENCE + SMOOTHING
