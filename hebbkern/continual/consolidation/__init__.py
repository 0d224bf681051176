"""Synaptic consolidation: penalties that keep a network close to what it has learned (EWC, SI, MAS, baselines).

The same training loop works for all methods, also for `Consolidation()`, which does nothing (finetuning):

    method = OnlineEWC(model, strength=100)
    for task in stream:
        for x, labels in task:
            loss = F.cross_entropy(model(x), labels) + method.penalty(model, x)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            method.after_step()
        method.after_task(model, task)

It is faster to add the gradient of the penalty to .grad than to add the penalty to the loss; the weights are the same:

            optimizer.zero_grad(); F.cross_entropy(model(x), labels).backward(); method.add_gradient(model, x)
            optimizer.step(); method.after_step()

| method | penalty | strength λ is |
| --- | --- | --- |
| `EWC` | λ/2 Σ_t Σ F_t (θ − θ*_t)² | λ of Kirkpatrick et al. 2017, equation 3 |
| `OnlineEWC` | λ/2 Σ γF (θ − θ*)², F = γF + F_t | λ of Schwarz et al. 2018 (DHP, appendix A: 100 or 400) |
| `SynapticIntelligence` | λ Σ Ω (θ − θ*)² | c of Zenke et al. 2017 (DHP, appendix A: 0.1 or 1.0) |
| `MAS` | λ Σ Ω (θ − θ*)² | λ of Aljundi et al. 2018 (DHP, appendix A: 0.1, 1.0 or 1.5) |
| `L2` | λ Σ (θ − θ*)² | λ |
| `LwF` | λ T² Σ KL(old ‖ new at temperature T) | λ_o of Li and Hoiem 2017 |

The DHP paper ("Differentiable Hebbian Consolidation for Continual Learning") writes λ Σ Ω (θ − θ*)² for all of them
(equations 1 and 4), but its λ are those of the papers above. For equation 4 as written, double the strength of `EWC`
and `OnlineEWC`.

The parameters to consolidate are chosen by name, for DHP the slow weights only:

    slow = [name for name, _ in model.named_parameters() if not name.endswith((".alpha", ".eta"))]
    MAS(slow, strength=0.1)
"""

from hebbkern.continual.consolidation.base import Consolidation
from hebbkern.continual.consolidation.distillation import LwF
from hebbkern.continual.consolidation.methods import EWC, L2, MAS, OnlineEWC, SynapticIntelligence

SI = SynapticIntelligence

__all__ = ["EWC", "L2", "MAS", "SI", "Consolidation", "LwF", "OnlineEWC", "SynapticIntelligence"]
