import sys, time
from tests.stub.proof import *
from tests.stub.deep_lies import LIARS
from bringup import probes
cases={}
names=[]
n=0
for suite in probes.SUITES:
    for keyed in (False, True):
        for local in (False, True):
            cases[n]=Case(suite, keyed=keyed, local=local); names.append("honest"); n+=1
    cases[n]=Case(suite, known=False); names.append("stranger"); n+=1
for name,lie in LIARS.items():
    suite=next(s for s in probes.SUITES if lie.probes[0] in probes.SUITES[s])
    cases[n]=Case(suite,(name,),keyed=lie.keyed,local=lie.local,deadline=3.0 if suite!="full" else 6.0); names.append(name); n+=1
t=time.time()
res=dict(run(cases, int(sys.argv[1])))
print("wall",time.time()-t, len(cases))
for i in range(n):
    o=res[i]; c=cases[i]
    first=next((r for r in o.records if r.name==o.told),None)
    lie=LIARS.get(names[i])
    mark="" 
    if o.error(c): mark="!!!! "+o.error(c)
    elif lie and o.told not in lie.probes: mark="?? told by other"
    elif not lie and o.verdict!="pass" and c.truth=="pass": mark="?? honest unknown"
    print(f"{i:3} {names[i]:45} {c.suite:8} {o.verdict:8} {o.told:12} {o.seconds:5.1f} {mark} {first.found[:110] if first and (mark or '-v' in sys.argv) else ''}")
